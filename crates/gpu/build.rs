//! Makes the Rust twins of cuda/include/abi.h, and compiles the kernels for all architectures of src/architectures.rs.
//!
//! In OUT_DIR: `abi.rs` for src/abi.rs; `images.rs`, the table of the images, for src/images.rs; and one file for each image.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use architectures::{ARCHITECTURES, Architecture};
use nvrtc::Nvrtc;
use table::Table;

#[path = "src/architectures.rs"]
#[allow(unreachable_pub, reason = "the crate publishes them")]
mod architectures;
#[path = "build/kernels.rs"]
mod kernels;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "build/sources.rs"]
mod sources;
#[path = "build/table.rs"]
mod table;

/// Path of libnvrtc.so.12. Unset or empty: a library without kernels.
const COMPILER: &str = "HPS_NVRTC";
/// For quick builds while developing: the architectures to compile for, such as `90,compute_90`. Unset or empty: all.
const RESTRICTION: &str = "HPS_CUDA_ARCHITECTURES";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let crate_folder = PathBuf::from(needed("CARGO_MANIFEST_DIR")?);
    let root =
        crate_folder.ancestors().nth(2).ok_or("the crate is not two folders below the repository's")?;
    let cuda = root.join("cuda");
    let out = PathBuf::from(needed("OUT_DIR")?);
    println!("cargo::rerun-if-changed={}", cuda.display());
    println!("cargo::rerun-if-env-changed={COMPILER}");
    println!("cargo::rerun-if-env-changed={RESTRICTION}");

    make_abi(&cuda.join("include/abi.h"), &out.join("abi.rs"))?;

    let sources = sources::read(&cuda).map_err(|error| format!("cannot read {}: {error}", cuda.display()))?;
    let restriction = env::var(RESTRICTION).ok().filter(|names| names.contains(char::is_alphanumeric));
    let architectures = restricted(restriction.as_deref())?;
    let mut table = Table {
        digest: sources::digest(&sources),
        compiler: None,
        restriction,
        architectures: Vec::new(),
        images: Vec::new(),
    };
    if let Some(path) = env::var_os(COMPILER).filter(|path| !path.is_empty()) {
        println!("cargo::rerun-if-changed={}", Path::new(&path).display());
        let nvrtc = Nvrtc::load(&path).map_err(|error| {
            format!("{COMPILER}={} cannot be used: {error}\n{}", path.display(), how_to_get_it())
        })?;
        table.images = kernels::compile(&nvrtc, &cuda, &sources, &architectures)?;
        table.compiler = Some(nvrtc.version().to_owned());
        table.architectures = architectures;
    } else {
        println!(
            "cargo::warning=the library will serve CPU tensors alone, as {COMPILER} names no compiler of GPU kernels. {}",
            how_to_get_it()
        );
    }
    table.write_to(&out)
}

fn needed(variable: &str) -> Result<OsString, String> {
    env::var_os(variable).ok_or_else(|| format!("cargo did not set {variable}"))
}

fn how_to_get_it() -> String {
    format!(
        "To have GPU kernels: pip install 'nvidia-cuda-nvrtc-cu12==12.9.*', {COMPILER}=<path of libnvrtc.so.12>"
    )
}

fn make_abi(header: &Path, to: &Path) -> Result<(), String> {
    bindgen::builder()
        .header(header.to_string_lossy())
        .allowlist_type("Hps.*")
        .allowlist_var("HPS_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        // 2 MB of device memory, which nobody should put on a stack.
        .no_default("HpsWantedKeys")
        .no_copy("HpsWantedKeys")
        .generate()
        .map_err(|error| format!("{}: {error}", header.display()))?
        .write_to_file(to)
        .map_err(|error| format!("cannot write {}: {error}", to.display()))
}

/// The architectures to compile for: all, or those that `names` lists. `90` is short for `sm_90`.
fn restricted(names: Option<&str>) -> Result<Vec<Architecture>, String> {
    let Some(names) = names else {
        return Ok(ARCHITECTURES.to_vec());
    };
    let names: Vec<&str> = names.split([',', ';', ' ']).filter(|name| !name.is_empty()).collect();
    let is = |architecture: &Architecture, name: &str| {
        let whole = architecture.name();
        whole == name || whole.strip_prefix("sm_") == Some(name)
    };
    for name in &names {
        if !ARCHITECTURES.iter().any(|architecture| is(architecture, name)) {
            let all: Vec<String> = ARCHITECTURES.iter().map(|architecture| architecture.name()).collect();
            return Err(format!("{RESTRICTION} names '{name}', which is none of {}", all.join(", ")));
        }
    }
    let is_wanted = |architecture: &&Architecture| names.iter().any(|name| is(architecture, name));
    Ok(ARCHITECTURES.iter().filter(is_wanted).copied().collect())
}
