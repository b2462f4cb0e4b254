//! Model files into the truth: loaded once, replaced when changed, taken over from the predecessor.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hps_core::load::{Loaded, Source, fill_cache, load_table};
use hps_core::model_files::ModelFiles;
use hps_core::observer::{Observer, Progress, Silent};
use hps_core::testing::{MapTier, row_of, rows_of};
use hps_core::tier::{Expected, Held, TableSpec, Tier, TierKind, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Error, ErrorKind, Key, KeyWidth, Rows, TableId};
use parking_lot::Mutex;

const SIZE: usize = 8;
const TABLE: TableId = TableId(0);

fn spec() -> TableSpec {
    TableSpec { name: "hps_et.m.t".into(), row_bytes: SIZE, key_width: KeyWidth::Bits64 }
}

fn tier() -> MapTier {
    MapTier::new(TierKind::Ssd, &[spec()])
}

fn source(directory: &Path, keys: &[Key], version: u64) -> Source {
    std::fs::create_dir_all(directory).unwrap();
    let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    std::fs::write(directory.join("key"), bytes).unwrap();
    std::fs::write(directory.join("emb_vector"), rows_of(keys, version, SIZE)).unwrap();
    open(directory)
}

fn open(directory: &Path) -> Source {
    let files = ModelFiles::open(directory, SIZE, KeyWidth::Bits64).unwrap();
    Source { table: directory.file_name().unwrap().to_str().unwrap().into(), files }
}

fn load(tier: &MapTier, sources: &[Source]) -> hps_core::Result<Loaded> {
    load_table(tier, TABLE, &spec(), sources, &Silent)
}

#[test]
fn a_table_is_loaded_once() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    let source = source(&home.path().join("a"), &[1, 2, 3, 2, 2], 1);
    assert_eq!(
        load(&tier, std::slice::from_ref(&source)).unwrap(),
        Loaded::FromFiles { rows: 3, repeated: 2 }
    );
    tier.insert(TABLE, &[2], Rows::new(&row_of(2, 7, SIZE), SIZE).unwrap()).unwrap();
    assert_eq!(load(&tier, &[source]).unwrap(), Loaded::AlreadyHeld);
    assert_eq!(tier.row(TABLE, 2), Some(row_of(2, 7, SIZE)), "an online update survives a restart");
}

#[test]
fn a_load_is_told_where_its_rows_come_from_and_the_truth_when_none_follows() {
    let home = tempfile::tempdir().unwrap();
    let tier = Arc::new(tier());
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    tier.set_hook(move |operation| {
        if operation.starts_with("resume") || operation.starts_with("forget") || operation == "put" {
            heard.lock().push(operation.to_owned());
        }
        Ok(())
    });
    let take = || std::mem::take(&mut *said.lock());
    let directory = home.path().join("a");
    load(&tier, &[source(&directory, &[1, 2], 1)]).unwrap();
    let [first, put] = <[String; 2]>::try_from(take()).unwrap();
    assert!(first.starts_with("resume") && first.contains(directory.to_str().unwrap()), "{first}");
    assert_eq!(put, "put");
    load(&tier, &[open(&directory)]).unwrap();
    assert_eq!(take(), ["forget_interrupted_load"], "held already");
    // The same keys at another time, with other rows.
    std::thread::sleep(std::time::Duration::from_millis(10));
    load(&tier, &[source(&directory, &[1, 2], 2)]).unwrap();
    let second = take().remove(0);
    assert!(second.starts_with("resume") && second != first, "{second}");
    tier.forget_record(TABLE);
    load(&tier, &[open(&directory)]).unwrap();
    assert_eq!(take(), ["forget_interrupted_load"], "taken over");
}

#[derive(Default)]
struct Heard(Mutex<Vec<(String, u64, u64)>>);

impl Observer for Heard {
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn progress(&self, progress: Progress<'_>) {
        self.0.lock().push((progress.what.into(), progress.done, progress.total));
    }
}

#[test]
fn progress_is_told_while_rows_are_read_and_while_they_are_written() {
    let home = tempfile::tempdir().unwrap();
    let heard = Heard::default();
    let sources = [source(&home.path().join("a"), &[1, 2, 3, 3], 1)];
    load_table(&tier(), TABLE, &spec(), &sources, &heard).unwrap();
    let expected = [("loading", 4, 4), ("writing", 1, 4), ("writing", 4, 4)];
    assert_eq!(heard.0.into_inner(), expected.map(|(what, done, total)| (what.to_owned(), done, total)));
}

#[test]
fn of_a_repeated_key_the_last_row_counts() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    let directory = home.path().join("a");
    source(&directory, &[5, 6, 5], 1);
    let mut rows = rows_of(&[5, 6, 5], 1, SIZE);
    rows[2 * SIZE..].copy_from_slice(&row_of(5, 2, SIZE));
    std::fs::write(directory.join("emb_vector"), rows).unwrap();
    load(&tier, &[open(&directory)]).unwrap();
    assert_eq!(tier.row(TABLE, 5), Some(row_of(5, 2, SIZE)));
}

#[test]
fn a_copy_with_the_same_content_is_recognised_and_updates_survive() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    load(&tier, &[source(&home.path().join("a"), &[1, 2], 1)]).unwrap();
    tier.insert(TABLE, &[2], Rows::new(&row_of(2, 7, SIZE), SIZE).unwrap()).unwrap();
    let copy = source(&home.path().join("b"), &[1, 2], 1);
    assert_eq!(load(&tier, std::slice::from_ref(&copy)).unwrap(), Loaded::AlreadyHeld);
    assert_eq!(tier.row(TABLE, 2), Some(row_of(2, 7, SIZE)));
    let Held::Table(record) = tier.held(TABLE).unwrap() else { panic!("held") };
    assert!(record.contains("/b"), "the record names the new place: {record}");
    assert_eq!(load(&tier, &[copy]).unwrap(), Loaded::AlreadyHeld);
}

#[test]
fn a_changed_source_replaces_the_table_whole() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    load(&tier, &[source(&home.path().join("a"), &[1, 2, 3], 1)]).unwrap();
    let changed = source(&home.path().join("a"), &[2, 3, 4], 2);
    assert_eq!(load(&tier, &[changed]).unwrap(), Loaded::FromFiles { rows: 3, repeated: 0 });
    assert_eq!(tier.row(TABLE, 1), None, "a key that the new files lack is gone");
    assert_eq!(tier.row(TABLE, 2), Some(row_of(2, 2, SIZE)));
}

#[test]
fn an_interrupted_replacement_leaves_the_old_table_and_is_completed_later() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    load(&tier, &[source(&home.path().join("a"), &[1, 2], 1)]).unwrap();
    let changed = source(&home.path().join("a"), &[2, 3], 2);
    for operation in ["put", "commit"] {
        tier.set_hook(move |now| match now == operation {
            true => Err(Error::new(ErrorKind::Storage, "disk full")),
            false => Ok(()),
        });
        let error = load(&tier, std::slice::from_ref(&changed)).unwrap_err();
        assert!(error.to_string().contains("hps_et.m.t"), "{error}");
        assert_eq!(tier.row(TABLE, 1), Some(row_of(1, 1, SIZE)));
    }
    tier.set_hook(|_| Ok(()));
    assert!(matches!(load(&tier, &[changed]).unwrap(), Loaded::FromFiles { rows: 2, .. }));
}

/// Cuts the `emb_vector` file in this directory short when a load has begun.
struct Cut(PathBuf);

impl Observer for Cut {
    fn warn(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {
        let file = std::fs::OpenOptions::new().write(true).open(self.0.join("emb_vector")).unwrap();
        file.set_len(SIZE as u64).unwrap();
    }
}

#[test]
fn a_load_whose_source_fails_is_interrupted_and_one_of_wrong_files_ends() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    let num_interrupted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&num_interrupted);
    tier.set_hook(move |operation| {
        counter.fetch_add(usize::from(operation == "interrupt"), Ordering::Relaxed);
        Ok(())
    });
    let keys: Vec<Key> = (0..200_000).collect();
    let directory = home.path().join("a");
    let source = source(&directory, &keys, 1);
    let error = load_table(&tier, TABLE, &spec(), &[source], &Cut(directory.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
    assert_eq!(num_interrupted.load(Ordering::Relaxed), 1);

    let sources = [1, 2].map(|version| self::source(&home.path().join(format!("b{version}")), &[7], version));
    let error = load(&tier, &sources).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(num_interrupted.load(Ordering::Relaxed), 1);
}

#[test]
fn the_predecessors_rows_are_taken_over_and_completed() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    let newer = rows_of(&[1, 2], 5, SIZE);
    tier.insert(TABLE, &[1, 2], Rows::new(&newer, SIZE).unwrap()).unwrap();
    tier.forget_record(TABLE);
    // Key 3 is only in the files, twice: the last row counts.
    let directory = home.path().join("a");
    source(&directory, &[1, 2, 3, 3], 1);
    let mut rows = rows_of(&[1, 2, 3, 3], 1, SIZE);
    rows[3 * SIZE..].copy_from_slice(&row_of(3, 2, SIZE));
    std::fs::write(directory.join("emb_vector"), rows).unwrap();
    let source = open(&directory);
    assert_eq!(load(&tier, std::slice::from_ref(&source)).unwrap(), Loaded::Adopted { added: 1 });
    assert_eq!(
        tier.row(TABLE, 1),
        Some(row_of(1, 5, SIZE)),
        "what the database holds may be newer than the files"
    );
    assert_eq!(tier.row(TABLE, 3), Some(row_of(3, 2, SIZE)));
    assert_eq!(load(&tier, &[source]).unwrap(), Loaded::AlreadyHeld);
}

#[test]
fn sources_that_disagree_on_a_key_are_refused_when_the_predecessors_rows_are_taken_over() {
    let home = tempfile::tempdir().unwrap();
    let tier = tier();
    tier.insert(TABLE, &[1], Rows::new(&row_of(1, 5, SIZE), SIZE).unwrap()).unwrap();
    tier.forget_record(TABLE);
    let first = source(&home.path().join("users"), &[1, 7, 8], 1);
    let same = source(&home.path().join("items"), &[8, 9], 1);
    let other = source(&home.path().join("genres"), &[7], 2);
    let error = load(&tier, &[first.clone(), same.clone(), other]).unwrap_err().to_string();
    assert!(
        error.contains("\"users\"") && error.contains("\"genres\"") && error.contains("key 7"),
        "{error}"
    );
    tier.forget_record(TABLE);
    load(&tier, &[first, same]).unwrap();
    assert_eq!(tier.row(TABLE, 9), Some(row_of(9, 1, SIZE)));
}

#[test]
fn a_read_only_truth_is_served_as_it_is_or_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut tier = tier();
    tier.read_only = true;
    let first = source(&home.path().join("a"), &[1], 1);
    let error = load(&tier, std::slice::from_ref(&first)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("read_only"), "{error}");
    tier.read_only = false;
    load(&tier, &[first]).unwrap();
    tier.read_only = true;
    let changed = source(&home.path().join("a"), &[1, 2], 2);
    assert_eq!(load(&tier, &[changed]).unwrap(), Loaded::AlreadyHeld);
    tier.forget_record(TABLE);
    assert_eq!(load(&tier, &[open(&home.path().join("a"))]).unwrap(), Loaded::AlreadyHeld);
}

#[test]
fn fused_tables_share_keys_only_with_equal_rows() {
    let home = tempfile::tempdir().unwrap();
    let first = source(&home.path().join("users"), &[1, 2, 3], 1);
    let same = source(&home.path().join("items"), &[3, 4], 1);
    let other = source(&home.path().join("genres"), &[9, 2], 2);
    let tier = self::tier();
    assert_eq!(
        load(&tier, &[first.clone(), same.clone()]).unwrap(),
        Loaded::FromFiles { rows: 4, repeated: 0 }
    );
    let tier = self::tier();
    let error = load(&tier, &[first, same, other]).unwrap_err().to_string();
    assert!(
        error.contains("\"users\"") && error.contains("\"genres\"") && error.contains("key 2"),
        "{error}"
    );
    assert_eq!(tier.held(TABLE).unwrap(), Held::Nothing);
}

#[test]
fn a_cache_is_filled_from_the_truth_up_to_a_limit_and_never_with_stale_rows() {
    let keys: Vec<Key> = (0..1_000).collect();
    let truth = Arc::new(tier());
    truth.insert(TABLE, &keys, Rows::new(&rows_of(&keys, 1, SIZE), SIZE).unwrap()).unwrap();
    let cache = MapTier::new(TierKind::Host, &[spec()]);
    let clock = UpdateClock::default();
    let fill = |limit, expected| {
        fill_cache(&cache, truth.as_ref(), (TABLE, &spec()), &clock, limit, Expected::rows(expected), &Silent)
            .unwrap()
    };
    assert_eq!(fill(Some(0), 0), 0);
    assert_eq!(fill(Some(250), 250), 250);
    assert_eq!(cache.usage(TABLE).unwrap().rows, 250);
    assert_eq!(fill(None, 3), 1_000, "without a limit all rows are carried, whatever was expected");
    assert_eq!(cache.usage(TABLE).unwrap().rows, 1_000);
    cache.erase(TABLE, &keys).unwrap();

    // All keys are written while the scan is under way: what was read before must not be carried up.
    let written = AtomicBool::new(false);
    let clock_ref = &clock;
    std::thread::scope(|scope| {
        let (reached, wait) = std::sync::mpsc::channel();
        let (done, go_on) = std::sync::mpsc::channel();
        let go_on = std::sync::Mutex::new(go_on);
        let reached = std::sync::Mutex::new(reached);
        let first = AtomicBool::new(true);
        cache.set_hook(move |operation| {
            if operation == "promote" && first.swap(false, Ordering::SeqCst) {
                reached.lock().unwrap().send(()).unwrap();
                go_on.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        let written = &written;
        scope.spawn(move || {
            wait.recv().unwrap();
            clock_ref.advance_all();
            written.store(true, Ordering::SeqCst);
            done.send(()).unwrap();
        });
        fill_cache(&cache, truth.as_ref(), (TABLE, &spec()), clock_ref, None, Expected::rows(10), &Silent)
            .unwrap();
    });
    assert!(written.load(Ordering::SeqCst));
    assert_eq!(cache.usage(TABLE).unwrap().rows, 0);
}
