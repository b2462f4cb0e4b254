//! Compiles every `.cu` file for every architecture, on all cores.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crate::architectures::{Architecture, Code};
use crate::nvrtc::{Nvrtc, Wanted};
use crate::sources::Source;

/// A compiled `.cu` file.
pub(crate) struct Image {
    pub(crate) architecture: Architecture,
    /// The file's name without `.cu`.
    pub(crate) unit: String,
    pub(crate) bytes: Vec<u8>,
}

/// Compiles all units of `sources`, which lie in the folder `cuda`. The error names every file that did not compile, with
/// the compiler's log and the architectures.
pub(crate) fn compile(
    nvrtc: &Nvrtc,
    cuda: &Path,
    sources: &[Source],
    architectures: &[Architecture],
) -> Result<Vec<Image>, String> {
    let mut units: Vec<(&str, &Source)> =
        sources.iter().filter_map(|source| Some((source.unit()?, source))).collect();
    // The last are taken first: long files, so that no core is left with one at the end.
    units.sort_by_key(|(_, source)| source.content.len());
    let jobs: Vec<_> = units
        .iter()
        .flat_map(|unit| architectures.iter().map(|architecture| (*unit, *architecture)))
        .collect();
    let jobs = Mutex::new(jobs);
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some(((unit, source), architecture)) = take(&jobs) {
            let result = compile_one(nvrtc, cuda, source, architecture);
            put(&done, (unit, architecture, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });

    let mut done = done.into_inner().map_err(|error| error.to_string())?;
    done.sort_by_key(|(unit, architecture, _)| (*unit, *architecture));
    let mut images = Vec::new();
    // The same mistake is shown once, with all the architectures that it was found for.
    let mut failures = BTreeMap::<_, Vec<String>>::new();
    for (unit, architecture, result) in done {
        match result {
            Ok(bytes) => images.push(Image { architecture, unit: unit.to_owned(), bytes }),
            Err(log) => failures.entry((unit, log)).or_default().push(architecture.name()),
        }
    }
    if failures.is_empty() {
        return Ok(images);
    }
    Err(failures.into_iter().fold(String::new(), |text, ((unit, log), names)| {
        text + &format!("cuda/{unit}.cu did not compile cleanly for {}:\n{log}\n", names.join(", "))
    }))
}

fn compile_one(
    nvrtc: &Nvrtc,
    cuda: &Path,
    source: &Source,
    architecture: Architecture,
) -> Result<Vec<u8>, String> {
    let options = [
        format!("--gpu-architecture={}", architecture.name()),
        "--std=c++17".to_owned(),
        "--device-as-default-execution-space".to_owned(),
        format!("--include-path={}", cuda.display()),
    ];
    let wanted = match architecture.code {
        Code::Machine => Wanted::MachineCode,
        Code::Ptx => Wanted::Ptx,
    };
    nvrtc.compile(&source.name, &source.content, &options, wanted)
}

fn take<T>(jobs: &Mutex<Vec<T>>) -> Option<T> {
    jobs.lock().ok()?.pop()
}

fn put<T>(done: &Mutex<Vec<T>>, result: T) {
    if let Ok(mut done) = done.lock() {
        done.push(result);
    }
}
