//! The kernels inside the library are all there, are what their names say, and were made from the sources beside them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::Path;

use hps_gpu::images::{
    ARCHITECTURES, Architecture, COMPILER, Code, ImageSet, RESTRICTED_TO, SOURCES_DIGEST, for_capability,
    image_sets,
};
use sources::Source;

#[path = "../build/sources.rs"]
mod sources;

/// What users are promised: V100, T4, A100, A10, L4, H100 and H200, B200, RTX 50, and PTX for what comes later.
const PROMISED: [&str; 9] =
    ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_90"];

fn sources() -> Vec<Source> {
    sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cuda")).unwrap()
}

/// All images of the library, with their names.
fn images() -> impl Iterator<Item = (Architecture, &'static str, &'static [u8])> {
    image_sets().iter().flat_map(|set: &ImageSet| {
        set.units().map(|unit| (set.architecture(), unit, set.unit(unit).unwrap()))
    })
}

#[test]
fn every_architecture_is_there() {
    assert!(COMPILER.is_some(), "{}", for_capability(9, 0).unwrap_err());
    let held: Vec<String> = image_sets().iter().map(|set| set.architecture().name()).collect();
    let all: Vec<String> = ARCHITECTURES.iter().map(|architecture| architecture.name()).collect();
    assert_eq!(all, PROMISED);
    if let Some(names) = RESTRICTED_TO {
        // Not by eprintln, which the test runner would keep to itself.
        let note = format!("note: HPS_CUDA_ARCHITECTURES={names} at build time; only {held:?} are checked\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        assert!(!held.is_empty());
        assert!(held.iter().all(|name| all.contains(name)));
    } else {
        assert_eq!(held, all);
    }
}

#[test]
fn every_architecture_has_every_unit() {
    let sources = sources();
    let units: Vec<&str> = sources.iter().filter_map(|source| source.unit()).collect();
    assert!(units.contains(&"lookup"), "{units:?}");
    for set in image_sets() {
        assert_eq!(set.units().collect::<Vec<_>>(), units, "{}", set.architecture().name());
    }
}

#[test]
fn the_images_were_made_from_these_sources() {
    assert_eq!(
        SOURCES_DIGEST,
        sources::digest(&sources()),
        "cuda/ was changed while or after the library was built: build again"
    );
}

#[test]
fn the_digest_sees_names_contents_and_where_they_end() {
    let digest = |files: &[(&str, &str)]| {
        let files = files
            .iter()
            .map(|(name, content)| Source { name: (*name).to_owned(), content: content.as_bytes().to_vec() });
        sources::digest(&files.collect::<Vec<_>>())
    };
    let files = [("a.cu", "x"), ("b.h", "y")];
    assert_eq!(digest(&files), digest(&files));
    for other in [
        &[("a.cu", "x")][..],
        &[("a.cu", "x"), ("b.h", "z")],
        &[("a.cu", "x"), ("c.h", "y")],
        &[("a.cu", ""), ("xb.h", "y")],
        &[("b.h", "y"), ("a.cu", "x")],
    ] {
        assert_ne!(digest(&files), digest(other), "{other:?}");
    }
}

#[test]
fn every_image_is_for_its_architecture() {
    for (architecture, unit, image) in images() {
        let place = format!("{unit} for {}", architecture.name());
        match architecture.code {
            Code::Machine => {
                assert_eq!(
                    elf_architecture(image),
                    Ok(architecture.major * 10 + architecture.minor),
                    "{place}"
                );
            }
            Code::Ptx => {
                let (last, text) = image.split_last().unwrap();
                assert_eq!(*last, 0, "{place}");
                let text = std::str::from_utf8(text).unwrap();
                let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("//"));
                assert!(lines.next().unwrap().starts_with(".version "), "{place}");
                let target = format!(".target sm_{}{}", architecture.major, architecture.minor);
                assert_eq!(lines.next().unwrap(), target, "{place}");
            }
        }
    }
}

#[test]
fn every_image_has_an_address_that_the_driver_can_read_an_elf_header_at() {
    for (architecture, unit, image) in images() {
        assert_eq!(image.as_ptr().addr() % 16, 0, "{unit} for {}", architecture.name());
    }
}

#[test]
fn a_gpu_of_each_architecture_gets_its_own_images() {
    for set in image_sets().iter().filter(|set| set.architecture().code == Code::Machine) {
        let wanted = set.architecture();
        assert_eq!(for_capability(wanted.major, wanted.minor).unwrap().architecture(), wanted);
    }
}

/// The number of the architecture (90 for `sm_90`) in the header of an ELF file that holds machine code of a GPU.
fn elf_architecture(image: &[u8]) -> Result<u32, String> {
    let byte = |at: usize| image.get(at).copied().ok_or(format!("ends before byte {at}"));
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a little-endian ELF file of 64 bits".to_owned());
    }
    // e_machine: EM_CUDA.
    if (byte(18)?, byte(19)?) != (190, 0) {
        return Err("not for a GPU".to_owned());
    }
    // e_flags, at byte 48: where the number is depends on the version of the ABI. Found by looking at what NVRTC 12.9 writes:
    // version 7 up to sm_90, version 8 from sm_100 on.
    match byte(8)? {
        7 => byte(48),
        8 => byte(49),
        version => Err(format!("ABI version {version} is not known here")),
    }
    .map(u32::from)
}
