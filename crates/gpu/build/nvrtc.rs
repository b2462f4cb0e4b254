//! The compiler of the kernels: NVIDIA's NVRTC, a library that needs neither a GPU nor the CUDA toolkit.

use std::error::Error;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::ptr;

use libloading::Library;

/// What the images are compiled and tested with.
const WANTED_VERSION: (c_int, c_int) = (12, 9);

/// The one line of the compiler's log that cannot be switched off and is not about the source.
const HARMLESS: &str = "nvrtc: warning: Architectures prior to '<compute/sm>_75' are deprecated";

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Handle,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Handle) -> c_int;
type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type BytesOf = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// Two functions that give one result: how many bytes, and the bytes.
type Output = (SizeOf, BytesOf);

/// The loaded compiler. May be called from several threads.
pub(crate) struct Nvrtc {
    create: Create,
    compile: Compile,
    destroy: Destroy,
    error_string: ErrorString,
    log: Output,
    cubin: Output,
    ptx: Output,
    version: String,
    /// Keeps the code of the functions above.
    _library: Library,
}

/// What to make.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    MachineCode,
    /// Text with a zero byte at its end.
    Ptx,
}

impl Nvrtc {
    /// Loads the library at `path` and makes sure that it is the release that the images are tested with.
    pub(crate) fn load(path: &OsStr) -> Result<Self, String> {
        // SAFETY: whoever sets HPS_NVRTC names a library that may be loaded; NVRTC does nothing of note when it is.
        let library = unsafe { Library::new(path) }.map_err(|error| with_cause(&error))?;
        // SAFETY: the type is that of nvrtc.h, as for all functions below.
        let version: Version = unsafe { function(&library, c"nvrtcVersion") }?;
        // SAFETY: see above.
        let create = unsafe { function(&library, c"nvrtcCreateProgram") }?;
        // SAFETY: see above.
        let compile = unsafe { function(&library, c"nvrtcCompileProgram") }?;
        // SAFETY: see above.
        let destroy = unsafe { function(&library, c"nvrtcDestroyProgram") }?;
        // SAFETY: see above.
        let error_string = unsafe { function(&library, c"nvrtcGetErrorString") }?;
        let log = output(&library, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
        let cubin = output(&library, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?;
        let ptx = output(&library, c"nvrtcGetPTXSize", c"nvrtcGetPTX")?;

        let (mut major, mut minor) = (0, 0);
        // SAFETY: both addresses are those of integers that live on.
        let status = unsafe { version(&mut major, &mut minor) };
        let mut nvrtc = Self {
            create,
            compile,
            destroy,
            error_string,
            log,
            cubin,
            ptx,
            version: String::new(),
            _library: library,
        };
        nvrtc.check(status, "nvrtcVersion")?;
        if (major, minor) != WANTED_VERSION {
            let (wanted_major, wanted_minor) = WANTED_VERSION;
            return Err(format!("it is release {major}.{minor}, not {wanted_major}.{wanted_minor}"));
        }
        nvrtc.version = format!("NVRTC {major}.{minor}");
        Ok(nvrtc)
    }

    /// Name and release.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Compiles `source`; the error is the compiler's log. Warnings are errors.
    pub(crate) fn compile(
        &self,
        name: &str,
        source: &[u8],
        options: &[String],
        wanted: Wanted,
    ) -> Result<Vec<u8>, String> {
        let name = c_string(name.as_bytes())?;
        let source = c_string(source)?;
        let options =
            options.iter().map(|option| c_string(option.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let num_options = c_int::try_from(options.len()).map_err(|error| error.to_string())?;

        let mut program = Program { nvrtc: self, handle: ptr::null_mut() };
        // SAFETY: the texts end with a zero byte and live on; zero headers follow, so that their arrays are not read.
        let status = unsafe {
            (self.create)(&mut program.handle, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check(status, "nvrtcCreateProgram")?;
        // SAFETY: the program was just made; `options` holds `num_options` texts that live on.
        let status = unsafe { (self.compile)(program.handle, num_options, options.as_ptr()) };
        let log = program.read(self.log)?;
        let log = String::from_utf8_lossy(&log);
        let log: Vec<&str> = log
            .trim_end_matches('\0')
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with(HARMLESS))
            .collect();
        self.check(status, "nvrtcCompileProgram").map_err(|error| format!("{error}\n{}", log.join("\n")))?;
        if !log.is_empty() {
            return Err(log.join("\n"));
        }
        program.read(match wanted {
            Wanted::MachineCode => self.cubin,
            Wanted::Ptx => self.ptx,
        })
    }

    fn check(&self, status: c_int, what: &str) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes any number.
        let text = unsafe { (self.error_string)(status) };
        // SAFETY: nvrtc.h promises a constant text that ends with a zero byte, whatever the number.
        let text = unsafe { CStr::from_ptr(text) };
        Err(format!("{what}: {}", text.to_string_lossy()))
    }
}

/// One program of the compiler.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    /// Null, or what `nvrtcCreateProgram` made.
    handle: Handle,
}

impl Program<'_> {
    fn read(&self, (size_of, bytes_of): Output) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the handle is that of a program; the size lives on.
        let status = unsafe { size_of(self.handle, &mut size) };
        self.nvrtc.check(status, "size of a result")?;
        let mut bytes = vec![0; size];
        // SAFETY: the handle is that of a program; the buffer has the size that the compiler just asked for.
        let status = unsafe { bytes_of(self.handle, bytes.as_mut_ptr().cast()) };
        self.nvrtc.check(status, "result")?;
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the program was made by the same library and nobody uses it any more.
            unsafe { (self.nvrtc.destroy)(&mut self.handle) };
        }
    }
}

/// # Safety
/// `T` is the type of the function `name`, which is not called once `library` is gone.
unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T, String> {
    // SAFETY: promised by the caller.
    let function = unsafe { library.get::<T>(name) };
    function.map(|function| *function).map_err(|error| with_cause(&error))
}

fn output(library: &Library, size_of: &CStr, bytes_of: &CStr) -> Result<Output, String> {
    // SAFETY: nvrtc.h gives all functions whose names end with `Size` this type.
    let size_of = unsafe { function::<SizeOf>(library, size_of) }?;
    // SAFETY: and the functions without `Size` this one.
    let bytes_of = unsafe { function::<BytesOf>(library, bytes_of) }?;
    Ok((size_of, bytes_of))
}

/// libloading leaves what the system said to the source of its errors.
fn with_cause(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn c_string(text: &[u8]) -> Result<CString, String> {
    CString::new(text).map_err(|error| error.to_string())
}
