//! The C interface, `hps.h`. What the functions promise is said there.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use hps_core::{Error, ErrorKind, Result};

use crate::assemble;
use crate::guard::no_panic;
use crate::prepared::{self, PreparedLookup};
use crate::registry::registry;
use crate::stats_json::stats_json;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn code(kind: ErrorKind) -> c_int {
    match kind {
        ErrorKind::InvalidArgument => 1,
        ErrorKind::Config => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Storage => 4,
        ErrorKind::OutOfMemory => 5,
        ErrorKind::Corrupt => 6,
        ErrorKind::Closed => 7,
        ErrorKind::Unsupported => 8,
        ErrorKind::Device => 10,
        _ => 9,
    }
}

fn c_string(text: &str) -> CString {
    // A zero byte cannot travel in a C string; it has no meaning in our texts.
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

/// Runs a call and notes its error for the calling thread.
fn call(body: impl FnOnce() -> Result<()>) -> c_int {
    let result = no_panic(body);
    let (code, text) = match &result {
        Ok(()) => (0, CString::default()),
        Err(error) => (code(error.kind()), c_string(&error.to_string())),
    };
    // Only fails while a thread ends; nobody can ask for the text then.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
    code
}

/// # Safety
/// `text` is null or a string that ends with a zero byte and does not change during the call.
unsafe fn argument<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("{name} is null")));
    }
    // SAFETY: not null; the rest is promised by the caller.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|why| {
        Error::new(ErrorKind::InvalidArgument, format!("{name} is not valid UTF-8")).caused_by(why)
    })
}

/// # Safety
/// `target` is null or may be written.
unsafe fn hand_out(name: &str, target: *mut *mut c_char, text: &str) -> Result<()> {
    if target.is_null() {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("{name} is null")));
    }
    // SAFETY: not null; the caller promises that it may be written.
    unsafe { target.write(c_string(text).into_raw()) };
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hps_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn hps_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_open(ps_config_file: *const c_char) -> c_int {
    call(|| {
        // SAFETY: the caller's promise, in hps.h.
        let name = unsafe { argument("ps_config_file", ps_config_file) }?;
        registry().store(name).map(drop)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_close(ps_config_file: *const c_char) -> c_int {
    call(|| {
        // SAFETY: the caller's promise, in hps.h.
        let name = unsafe { argument("ps_config_file", ps_config_file) }?;
        registry().close(name)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hps_close_all() -> c_int {
    call(|| registry().close_all())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_stats(ps_config_file: *const c_char, json: *mut *mut c_char) -> c_int {
    call(|| {
        // SAFETY: the caller's promise, in hps.h.
        let name = unsafe { argument("ps_config_file", ps_config_file) }?;
        let text = stats_json(&*registry().open_store(name)?)?;
        // SAFETY: the caller's promise, in hps.h.
        unsafe { hand_out("json", json, &text) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_refresh(ps_config_file: *const c_char, keys: *mut u64) -> c_int {
    call(|| {
        // SAFETY: the caller's promise, in hps.h.
        let name = unsafe { argument("ps_config_file", ps_config_file) }?;
        let num_keys = registry().open_store(name)?.store.refresh_devices()?;
        if !keys.is_null() {
            // SAFETY: not null; the caller promises that it may be written.
            unsafe { keys.write(num_keys) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_resolve(ps_config_file: *const c_char, path: *mut *mut c_char) -> c_int {
    call(|| {
        // SAFETY: the caller's promise, in hps.h.
        let name = unsafe { argument("ps_config_file", ps_config_file) }?;
        let found = assemble::resolve(name)?;
        // SAFETY: the caller's promise, in hps.h.
        unsafe { hand_out("path", path, &found.display().to_string()) }
    })
}

/// # Safety
/// As hps.h says of `ps_config_file` and `model_name`.
unsafe fn prepare(
    ps_config_file: *const c_char,
    model_name: *const c_char,
    table_id: i64,
    emb_vec_size: Option<i64>,
    key_bits: c_int,
) -> Result<Box<PreparedLookup>> {
    // SAFETY: the caller's promise.
    let name = unsafe { argument("ps_config_file", ps_config_file) }?;
    // SAFETY: the caller's promise.
    let model = unsafe { argument("model_name", model_name) }?;
    let Some(key_bits) = u32::try_from(key_bits).ok().filter(|bits| [32, 64].contains(bits)) else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("key_bits is {key_bits}; it must be 32 or 64"),
        ));
    };
    prepared::prepare(name, model, table_id, emb_vec_size, key_bits)
}

/// Pointers that the keys of a call need.
fn check_pointers(num_keys: usize, are_null: bool) -> Result<()> {
    if num_keys > 0 && are_null {
        return Err(Error::new(ErrorKind::InvalidArgument, "keys or rows is null"));
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_lookup(
    ps_config_file: *const c_char,
    model_name: *const c_char,
    table_id: i64,
    emb_vec_size: i64,
    keys: *const c_void,
    key_bits: c_int,
    num_keys: usize,
    rows: *mut f32,
) -> c_int {
    call(|| {
        check_pointers(num_keys, keys.is_null() || rows.is_null())?;
        // SAFETY: the caller's promise, in hps.h.
        let table = unsafe { prepare(ps_config_file, model_name, table_id, Some(emb_vec_size), key_bits) }?;
        // SAFETY: the caller's promise, in hps.h: num_keys keys of the width that was checked, and room for their rows.
        unsafe { table.run(keys as usize, num_keys, rows as usize) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_update(
    ps_config_file: *const c_char,
    model_name: *const c_char,
    table_id: i64,
    emb_vec_size: i64,
    keys: *const c_void,
    key_bits: c_int,
    num_keys: usize,
    rows: *const f32,
) -> c_int {
    call(|| {
        check_pointers(num_keys, keys.is_null() || rows.is_null())?;
        // SAFETY: the caller's promise, in hps.h.
        let table = unsafe { prepare(ps_config_file, model_name, table_id, Some(emb_vec_size), key_bits) }?;
        // SAFETY: the caller's promise, in hps.h: num_keys keys of the width that was checked, and their rows.
        unsafe { table.update(keys as usize, num_keys, rows as usize) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_erase(
    ps_config_file: *const c_char,
    model_name: *const c_char,
    table_id: i64,
    keys: *const c_void,
    key_bits: c_int,
    num_keys: usize,
) -> c_int {
    call(|| {
        check_pointers(num_keys, keys.is_null())?;
        // SAFETY: the caller's promise, in hps.h.
        let table = unsafe { prepare(ps_config_file, model_name, table_id, None, key_bits) }?;
        // SAFETY: the caller's promise, in hps.h: num_keys keys of the width that was checked.
        unsafe { table.erase(keys as usize, num_keys) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hps_free_string(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: by hps.h it came from `hand_out`, and is given back once.
        drop(unsafe { CString::from_raw(string) });
    }
}
