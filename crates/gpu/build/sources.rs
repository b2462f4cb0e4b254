//! The files of cuda/, and a digest that tells whether images were made from them. For build.rs and tests/images.rs.

use std::fs;
use std::io;
use std::path::Path;

/// A file that the kernels are made of.
pub(crate) struct Source {
    /// Path below cuda/, with `/`.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Source {
    /// `lookup` for lookup.cu; none for a header, which is not compiled by itself.
    pub(crate) fn unit(&self) -> Option<&str> {
        self.name.strip_suffix(".cu")
    }
}

/// All sources below `folder`, sorted by name.
pub(crate) fn read(folder: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(folder, "", &mut sources)?;
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}

fn collect(folder: &Path, prefix: &str, sources: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), sources)?;
        } else if [".cu", ".cuh", ".h"].iter().any(|suffix| name.ends_with(suffix)) {
            sources.push(Source { content: fs::read(entry.path())?, name });
        }
    }
    Ok(())
}

/// FNV-1a over names and contents, each after its length.
pub(crate) fn digest(sources: &[Source]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for source in sources {
        add(source.name.as_bytes());
        add(&source.content);
    }
    hash
}
