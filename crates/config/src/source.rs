//! The folders that tables are loaded from: `sparse_files`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::json::quoted;
use crate::paths::{self, Folders};
use crate::report::{Place, Report};

/// The files of a table, in its folder.
const FILES: [&str; 2] = ["key", "emb_vector"];

const EXPECTED: &str = "a local folder with the files `key` and `emb_vector`";

/// The folder that `text` stands for. Unless `is_loaded`, it need not exist.
pub(crate) fn resolve(
    text: &str,
    place: &Place,
    is_loaded: bool,
    folders: &Folders,
    report: &Report<'_>,
) -> PathBuf {
    let candidates = folders.candidates(text);
    let problem =
        |found: String, help: Option<String>| report.problem_with_help(place, found, EXPECTED, help);
    if text.is_empty() || text.contains('\0') {
        problem(quoted(text), None);
        return PathBuf::new();
    }
    let Some(folder) = folders.existing(text) else {
        let tried = || candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ");
        if let Some(scheme) = paths::scheme(text) {
            let help = format!("`{scheme}:` is not supported: copy the files to a local folder");
            problem(quoted(text), Some(help));
        } else if is_loaded {
            problem(format!("{}, which does not exist", quoted(text)), Some(format!("tried {}", tried())));
        }
        return candidates.into_iter().next().unwrap_or_default();
    };
    if is_loaded {
        let tried: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
        for fault in faults(&folder) {
            problem(format!("{}, {fault}", quoted(text)), Some(format!("tried {}", tried.join(" and "))));
        }
    }
    folder
}

/// What keeps `folder` from being a table's.
fn faults(folder: &Path) -> Vec<String> {
    if folder.is_file() {
        return vec![format!("{} being a file", folder.display())];
    }
    let fault = |name: &&str| match fs::metadata(folder.join(name)) {
        Ok(metadata) if metadata.is_dir() => Some(format!("in which `{name}` is a folder")),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("which has no file `{name}`")),
        Err(error) => Some(format!("whose file `{name}` cannot be read: {error}")),
    };
    FILES.iter().filter_map(fault).collect()
}
