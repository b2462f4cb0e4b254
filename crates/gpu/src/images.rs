//! The compiled kernels inside this library, and which of them a GPU can run.

use std::fmt;

use hps_core::{Error, ErrorKind, Result};

pub use crate::architectures::{ARCHITECTURES, Architecture, Code};

/// Digest of the sources in cuda/ that the images were made from.
pub const SOURCES_DIGEST: u64 = built::SOURCES_DIGEST;

/// Compiler of the images; none if the library was built without it, and so without images.
pub const COMPILER: Option<&str> = built::COMPILER;

/// What `HPS_CUDA_ARCHITECTURES` restricted the images to when the library was built.
pub const RESTRICTED_TO: Option<&str> = built::RESTRICTED_TO;

/// The images of one architecture: one of each `.cu` file.
pub struct ImageSet {
    architecture: Architecture,
    units: &'static [(&'static str, &'static [u8])],
}

impl ImageSet {
    /// What the images were compiled for.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The image of cuda/`name`.cu: an ELF file, or PTX text with a zero byte at its end, as the driver wants them.
    pub fn unit(&self, name: &str) -> Option<&'static [u8]> {
        self.units.iter().find(|(unit, _)| *unit == name).map(|(_, image)| *image)
    }

    /// The names of all images, in alphabetical order.
    pub fn units(&self) -> impl Iterator<Item = &'static str> {
        self.units.iter().map(|(unit, _)| *unit)
    }

    /// Whether a GPU of this compute capability can run the images.
    fn runs_on(&self, major: u32, minor: u32) -> bool {
        let least = self.architecture;
        match least.code {
            Code::Machine => least.major == major && least.minor <= minor,
            Code::Ptx => (least.major, least.minor) <= (major, minor),
        }
    }
}

impl fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageSet").field("architecture", &self.architecture).finish_non_exhaustive()
    }
}

/// All images of this library, in the order of [`ARCHITECTURES`].
pub fn image_sets() -> &'static [ImageSet] {
    built::IMAGE_SETS
}

/// The images for a GPU of this compute capability: machine code if there is any for it, else PTX.
///
/// # Errors
/// `Unsupported` if the library has no code that the GPU can run, or none at all.
pub fn for_capability(major: u32, minor: u32) -> Result<&'static ImageSet> {
    choose(image_sets(), RESTRICTED_TO, major, minor)
}

fn choose<'a>(
    sets: &'a [ImageSet],
    restricted_to: Option<&str>,
    major: u32,
    minor: u32,
) -> Result<&'a ImageSet> {
    let newest = |code| {
        sets.iter()
            .filter(|set| set.architecture.code == code && set.runs_on(major, minor))
            .max_by_key(|set| set.architecture)
    };
    newest(Code::Machine)
        .or_else(|| newest(Code::Ptx))
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, why_none(sets, restricted_to, major, minor)))
}

fn why_none(sets: &[ImageSet], restricted_to: Option<&str>, major: u32, minor: u32) -> String {
    if sets.is_empty() {
        return "this library serves CPU tensors alone, as it was built without the compiler of GPU kernels. \
                Install it (pip install 'nvidia-cuda-nvrtc-cu12==12.9.*'), set HPS_NVRTC to the path of its \
                libnvrtc.so.12, and build again"
            .to_owned();
    }
    let held: Vec<String> = sets.iter().map(|set| set.architecture.name()).collect();
    let remedy = match restricted_to {
        Some(names) => format!("It was built with HPS_CUDA_ARCHITECTURES={names}: build it again without"),
        None => {
            "Use another GPU or CPU tensors, or add the capability to crates/gpu/src/architectures.rs and \
                 build again"
                .to_owned()
        }
    };
    format!(
        "this library has no code for a GPU of compute capability {major}.{minor}, only for {}. {remedy}",
        held.join(", ")
    )
}

/// What build.rs made.
#[allow(dead_code, unused_imports, unused_macros, reason = "not needed where there are no images")]
mod built {
    use super::{Architecture, ImageSet};

    /// Gives images an address that an ELF header may have.
    #[repr(align(16))]
    struct Aligned<T: ?Sized>(T);

    macro_rules! image {
        ($file:literal) => {{
            const IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
            &IMAGE.0
        }};
    }

    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn set(architecture: Architecture) -> ImageSet {
        ImageSet { architecture, units: &[("lookup", b"image")] }
    }

    static SETS: [ImageSet; 5] = [
        set(Architecture::machine(7, 0)),
        set(Architecture::machine(8, 0)),
        set(Architecture::machine(8, 6)),
        set(Architecture::ptx(9, 0)),
        set(Architecture::machine(9, 0)),
    ];

    fn chosen(major: u32, minor: u32) -> String {
        choose(&SETS, None, major, minor).unwrap().architecture().name()
    }

    #[test]
    fn machine_code_of_the_same_major_and_the_highest_minor_that_fits() {
        assert_eq!(chosen(7, 0), "sm_70");
        assert_eq!(chosen(7, 5), "sm_70");
        assert_eq!(chosen(8, 0), "sm_80");
        assert_eq!(chosen(8, 5), "sm_80");
        assert_eq!(chosen(8, 6), "sm_86");
        assert_eq!(chosen(8, 9), "sm_86");
        assert_eq!(chosen(9, 0), "sm_90");
    }

    #[test]
    fn ptx_for_what_has_no_machine_code_and_is_newer() {
        assert_eq!(chosen(10, 0), "compute_90");
        assert_eq!(chosen(12, 1), "compute_90");
        let no_machine_code = [set(Architecture::ptx(8, 0)), set(Architecture::ptx(9, 0))];
        assert_eq!(choose(&no_machine_code, None, 9, 0).unwrap().architecture(), Architecture::ptx(9, 0));
        assert_eq!(choose(&no_machine_code, None, 8, 9).unwrap().architecture(), Architecture::ptx(8, 0));
    }

    #[test]
    fn a_gpu_without_code_is_told_what_there_is_and_what_to_do() {
        for (major, minor) in [(6, 1), (0, 0)] {
            let error = choose(&SETS, None, major, minor).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            assert!(text.contains(&format!("capability {major}.{minor}, ")), "{text}");
            assert!(text.contains("only for sm_70, sm_80, sm_86, compute_90, sm_90. Use"), "{text}");
        }
        // Machine code does not run on an older minor version, nor on another major one.
        let only = [set(Architecture::machine(8, 6))];
        for (major, minor) in [(8, 0), (9, 0), (7, 6)] {
            assert!(choose(&only, None, major, minor).is_err());
        }
    }

    #[test]
    fn a_restricted_build_says_that_it_is_one() {
        let error = choose(&SETS, Some("80,86"), 6, 0).unwrap_err().to_string();
        assert!(error.ends_with("HPS_CUDA_ARCHITECTURES=80,86: build it again without"), "{error}");
    }

    #[test]
    fn a_build_without_compiler_says_how_to_get_it() {
        let error = choose(&[], None, 9, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("nvidia-cuda-nvrtc-cu12"), "{error}");
        assert!(error.to_string().contains("HPS_NVRTC"), "{error}");
    }

    #[test]
    fn units_are_found_by_name() {
        let [first, ..] = &SETS;
        assert_eq!(first.unit("lookup"), Some(&b"image"[..]));
        assert_eq!(first.unit("look"), None);
        assert_eq!(first.units().collect::<Vec<_>>(), ["lookup"]);
    }
}
