//! Writes what src/images.rs includes: the images, and a table of them.

use std::fs;
use std::path::Path;

use crate::architectures::{Architecture, Code};
use crate::kernels::Image;

/// What src/images.rs is told.
pub(crate) struct Table {
    pub(crate) digest: u64,
    pub(crate) compiler: Option<String>,
    pub(crate) restriction: Option<String>,
    pub(crate) architectures: Vec<Architecture>,
    /// Images of these architectures, in the order that they are to be listed in.
    pub(crate) images: Vec<Image>,
}

impl Table {
    /// Writes `images.rs`, and each image to a file of its own.
    pub(crate) fn write_to(&self, out: &Path) -> Result<(), String> {
        let mut sets = String::new();
        for architecture in &self.architectures {
            let (major, minor) = (architecture.major, architecture.minor);
            let make = match architecture.code {
                Code::Machine => "machine",
                Code::Ptx => "ptx",
            };
            let mut units = String::new();
            for image in self.images.iter().filter(|image| image.architecture == *architecture) {
                let file = format!("{}.{}.image", image.unit, architecture.name());
                save(&out.join(&file), &image.bytes)?;
                units += &format!("({:?}, image!({file:?})), ", image.unit);
            }
            sets += &format!(
                "    ImageSet {{ architecture: Architecture::{make}({major}, {minor}), units: &[{units}] }},\n"
            );
        }
        let text = format!(
            "pub(super) const SOURCES_DIGEST: u64 = {:#018x};\n\
             pub(super) const COMPILER: Option<&str> = {:?};\n\
             pub(super) const RESTRICTED_TO: Option<&str> = {:?};\n\
             pub(super) static IMAGE_SETS: &[ImageSet] = &[\n{sets}];\n",
            self.digest, self.compiler, self.restriction
        );
        save(&out.join("images.rs"), text.as_bytes())
    }
}

fn save(to: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(to, bytes).map_err(|error| format!("cannot write {}: {error}", to.display()))
}
