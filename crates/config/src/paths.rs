//! Paths inside a configuration, and the path of the configuration itself.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::problem::ConfigError;

/// The folders from which relative paths start.
pub(crate) struct Folders {
    /// The configuration's own.
    own: PathBuf,
    /// The working directory, if the process has one.
    working: Option<PathBuf>,
}

impl Folders {
    /// Those of the configuration in `file`.
    pub(crate) fn of(file: &Path) -> Self {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let own = file.parent().unwrap_or(&file).to_owned();
        Self { own, working: std::env::current_dir().ok() }
    }

    /// Where `path` may be: in the configuration's own folder first, then in the working directory.
    pub(crate) fn candidates(&self, path: &str) -> Vec<PathBuf> {
        let beside = tidy(&self.own.join(path));
        let in_working = self.working.as_ref().map(|folder| tidy(&folder.join(path)));
        let mut candidates = vec![beside];
        candidates.extend(in_working);
        candidates.dedup();
        candidates
    }

    /// The first candidate that exists.
    pub(crate) fn existing(&self, path: &str) -> Option<PathBuf> {
        self.candidates(path).into_iter().find(|candidate| exists(candidate))
    }

    /// Where `path` stands, or is to be made: in the configuration's own folder.
    pub(crate) fn existing_or_own(&self, path: &str) -> PathBuf {
        self.existing(path).unwrap_or_else(|| tidy(&self.own.join(path)))
    }
}

/// Removes `.` components; `..` stays, since what is before it may be a link.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Whether there is something, even if we may not look at it.
fn exists(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// The scheme of `scheme:rest`, if the text begins with one.
pub(crate) fn scheme(path: &str) -> Option<&str> {
    let (scheme, _) = path.split_once(':')?;
    let begins_with_letter = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_plain = scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    (begins_with_letter && is_plain).then_some(scheme)
}

/// Finds the configuration that the op argument `ps_config_file` stands for, and returns its canonical path.
///
/// A scripted model carries the path of the machine that made it, so what does not exist here is looked for
/// elsewhere: `argument` itself if it is a file; else the whole relative path, then the file name alone, in the
/// folder `HPS_CONFIG_DIR`; else the file `HPS_CONFIG_FILE`. `environment` gives the value of a variable;
/// an empty one counts as unset.
///
/// # Errors
/// One problem that lists everything tried.
pub fn resolve_config_file(
    argument: &Path,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, ConfigError> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut attempts: Vec<(&str, Option<PathBuf>)> = vec![("", Some(argument.to_owned()))];
    match variable("HPS_CONFIG_DIR") {
        None => attempts.push(("HPS_CONFIG_DIR", None)),
        Some(folder) => {
            let files = names_in_folder(argument).into_iter().map(|name| Some(folder.join(name)));
            attempts.extend(files.map(|file| ("in HPS_CONFIG_DIR: ", file)));
        }
    }
    attempts.push(match variable("HPS_CONFIG_FILE") {
        None => ("HPS_CONFIG_FILE", None),
        file => ("HPS_CONFIG_FILE: ", file),
    });

    let mut tried = Vec::new();
    for (label, file) in attempts {
        let Some(file) = file else {
            tried.push(format!("{label} (not set)"));
            continue;
        };
        match canonical_file(&file) {
            Ok(path) => return Ok(path),
            Err(why) => tried.push(format!("{label}{} ({why})", file.display())),
        }
    }
    let found = format!("no such file; tried {}", tried.join(", "));
    Err(ConfigError::about_file(argument.to_owned(), found, "a configuration file".to_owned()))
}

/// The names under which a folder may hold `argument`: as it was given, unless it would leave the folder, and the
/// file name alone.
fn names_in_folder(argument: &Path) -> Vec<PathBuf> {
    let stays_inside = argument.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let whole = stays_inside.then(|| tidy(argument)).filter(|path| !path.as_os_str().is_empty());
    let mut names: Vec<PathBuf> = whole.into_iter().chain(argument.file_name().map(PathBuf::from)).collect();
    names.dedup();
    names
}

fn canonical_file(path: &Path) -> Result<PathBuf, String> {
    if path.as_os_str().is_empty() {
        return Err("an empty path".to_owned());
    }
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "not found".to_owned(),
        _ => error.to_string(),
    })?;
    if metadata.is_dir() {
        return Err("a folder".to_owned());
    }
    fs::canonicalize(path).map_err(|error| error.to_string())
}
