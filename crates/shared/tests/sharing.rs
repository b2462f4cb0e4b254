//! Several processes, or several tiers of one, on one segment.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{TABLE, insert, limited, load, lookup, open, settings, spec};
use hps_core::key::mix;
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{CacheTier, Expected, Held, Promotion, Tier, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{ErrorKind, Key, Rows};
use hps_shared::{EvictionPolicy, Role, SharedSettings, SharedTier};

const SIZE: usize = 64;

/// Runs one of the tests below again in another process, where it finds what to do in this variable.
const TASK: &str = "HPS_SHARED_TASK";
const FOLDER: &str = "HPS_SHARED_FOLDER";

fn start(test: &str, task: &str, parent: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(TASK, task)
        .env(FOLDER, parent)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The task of a process that was started, and its tier.
fn task() -> Option<(String, SharedTier)> {
    let task = std::env::var(TASK).ok()?;
    let folder = std::env::var(FOLDER).unwrap();
    Some((task, open(&settings(Path::new(&folder)), SIZE)))
}

fn finish(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

fn segment_files(parent: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(parent.join("segment.hps")) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_one_process_loads_and_writes_all_see() {
    const NAME: &str = "what_one_process_loads_and_writes_all_see";
    let keys: Vec<Key> = (0..5_000).collect();
    if let Some((task, tier)) = task() {
        // The table is there already; what is written here is seen there.
        assert_eq!(tier.held(TABLE).unwrap(), Held::Table("record".into()));
        assert_eq!(lookup(&tier, SIZE, &[77]), [Some(row_of(77, 1, SIZE))]);
        if task == "write" {
            insert(&tier, SIZE, &[77, 1_000_000], 2);
            tier.erase(TABLE, &[5]).unwrap();
        } else {
            load(&tier, SIZE, &keys[..100], 9, "other");
        }
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    load(&tier, SIZE, &keys, 1, "record");
    finish(start(NAME, "write", parent.path()));
    let found = lookup(&tier, SIZE, &[77, 1_000_000, 5, 6]);
    let expected =
        [Some(row_of(77, 2, SIZE)), Some(row_of(1_000_000, 2, SIZE)), None, Some(row_of(6, 1, SIZE))];
    assert_eq!(found, expected);
    assert_eq!(tier.usage(TABLE).unwrap().rows, 5_000);
    insert(&tier, SIZE, &[77], 1);
    // Another process replaces the table; its files are the only ones that stay.
    finish(start(NAME, "replace", parent.path()));
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("other".into()));
    assert_eq!(lookup(&tier, SIZE, &[99, 100]), [Some(row_of(99, 9, SIZE)), None]);
    // lock, settings; served, info and one extent.
    assert_eq!(segment_files(parent.path()).len(), 5, "{:?}", segment_files(parent.path()));
}

#[test]
fn the_last_to_leave_removes_it_if_that_was_agreed() {
    let parent = tempfile::tempdir().unwrap();
    for auto_remove in [true, false] {
        let settings = SharedSettings { auto_remove, ..settings(parent.path()) };
        let tiers = [open(&settings, SIZE), open(&settings, SIZE)];
        load(&tiers[0], SIZE, &[1, 2, 3], 1, "record");
        let other = SharedSettings { auto_remove: !auto_remove, ..settings.clone() };
        let error = SharedTier::open(&other, &[spec(SIZE)]).unwrap_err();
        assert!(error.to_string().contains("shared_memory_auto_remove"), "{error}");
        let [first, second] = tiers;
        drop(first);
        assert_eq!(lookup(&second, SIZE, &[2]), [Some(row_of(2, 1, SIZE))]);
        drop(second);
        assert_eq!(segment_files(parent.path()).is_empty(), auto_remove);
        let again = open(&settings, SIZE);
        let held = if auto_remove { Held::Nothing } else { Held::Table("record".into()) };
        assert_eq!(again.held(TABLE).unwrap(), held);
        assert_eq!(lookup(&again, SIZE, &[2])[0].is_some(), !auto_remove);
    }
}

#[test]
fn whoever_is_refused_removes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let kept = SharedSettings { auto_remove: false, ..settings(parent.path()) };
    let tier = open(&kept, SIZE);
    load(&tier, SIZE, &[1, 2], 1, "record");
    drop(tier);
    for other in [
        settings(parent.path()),
        SharedSettings { role: Role::Cache, ..kept.clone() },
        SharedSettings { auto_remove: false, ..limited(parent.path(), 10, EvictionPolicy::Oldest) },
    ] {
        let error = SharedTier::open(&other, &[spec(SIZE)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("have to agree"), "{error}");
    }
    assert_eq!(lookup(&open(&kept, SIZE), SIZE, &[2]), [Some(row_of(2, 1, SIZE))]);
}

#[test]
fn what_is_no_directory_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("segment.hps"), "mine").unwrap();
    let error = SharedTier::open(&settings(parent.path()), &[spec(SIZE)]).unwrap_err();
    assert!(error.to_string().contains("segment.hps"), "{error}");
}

#[test]
fn a_file_that_was_made_without_its_memory_gets_it() {
    let parent = tempfile::tempdir().unwrap();
    let kept = SharedSettings { auto_remove: false, ..settings(parent.path()) };
    drop(open(&kept, SIZE));
    let served = segment_files(parent.path()).into_iter().find(|name| name.ends_with(".served")).unwrap();
    std::fs::write(parent.path().join("segment.hps").join(served), "").unwrap();
    let tier = open(&kept, SIZE);
    insert(&tier, SIZE, &[1], 1);
    assert_eq!(lookup(&open(&kept, SIZE), SIZE, &[1]), [Some(row_of(1, 1, SIZE))]);
}

#[test]
fn of_two_that_leave_at_once_one_is_the_last() {
    let parent = tempfile::tempdir().unwrap();
    for _ in 0..1_000 {
        let tiers = [open(&settings(parent.path()), SIZE), open(&settings(parent.path()), SIZE)];
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for tier in tiers {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    drop(tier);
                });
            }
        });
        assert_eq!(segment_files(parent.path()), Vec::<String>::new());
    }
}

#[test]
fn a_key_never_gets_the_row_of_another_that_takes_its_entry() {
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    let keys: Vec<Key> = (0..64).collect();
    insert(&tier, SIZE, &keys, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            while !done.load(Relaxed) {
                let mut bytes = vec![0; keys.len() * SIZE];
                let mut misses = Vec::new();
                let mut rows = hps_core::RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
                tier.lookup(TABLE, hps_core::Batch::all(&keys), &mut rows, &mut misses).unwrap();
                for (i, row) in bytes.chunks_exact(SIZE).enumerate() {
                    // A miss may leave anything in its row.
                    assert!(misses.contains(&(i as u32)) || row == row_of(keys[i], 1, SIZE), "key {i}");
                }
            }
        };
        scope.spawn(reader);
        for round in 0..3_000u64 {
            let gone: Vec<Key> = keys.iter().copied().filter(|key| key % 2 == round % 2).collect();
            tier.erase(TABLE, &gone).unwrap();
            let others: Vec<Key> = (0..900).map(|i| 1 << 32 | i).collect();
            insert(&tier, SIZE, &others, 1);
            tier.erase(TABLE, &others).unwrap();
            insert(&tier, SIZE, &gone, 1);
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn processes_that_come_and_go_never_meet_half_a_segment() {
    const NAME: &str = "processes_that_come_and_go_never_meet_half_a_segment";
    if let (Ok(_), Ok(folder)) = (std::env::var(TASK), std::env::var(FOLDER)) {
        // Often it is the last to leave, while others come.
        for round in 0..150 {
            let tier = open(&settings(Path::new(&folder)), SIZE);
            insert(&tier, SIZE, &[round], 1);
            assert_eq!(lookup(&tier, SIZE, &[round]), [Some(row_of(round, 1, SIZE))]);
        }
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..4).map(|_| start(NAME, "come and go", parent.path())).collect();
    children.into_iter().for_each(finish);
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_table_that_appears_while_another_process_loads_it_does_not_take_its_files() {
    let parent = tempfile::tempdir().unwrap();
    let (loader, other) = (open(&settings(parent.path()), SIZE), open(&settings(parent.path()), SIZE));
    let keys: Vec<Key> = (0..100).collect();
    let rows = rows_of(&keys, 2, SIZE);
    let mut load = loader.begin_load(TABLE, Expected::rows(100)).unwrap();
    load.put(&keys, Rows::new(&rows, SIZE).unwrap()).unwrap();
    insert(&other, SIZE, &[5], 1);
    assert_eq!(lookup(&other, SIZE, &[5]), [Some(row_of(5, 1, SIZE))]);
    load.commit("record", &|_| {}).unwrap();
    assert_eq!(lookup(&other, SIZE, &[5, 99]), [Some(row_of(5, 2, SIZE)), Some(row_of(99, 2, SIZE))]);
}

#[test]
fn threads_of_several_tiers_make_files_without_losing_the_lock() {
    let parent = tempfile::tempdir().unwrap();
    let specs: Vec<_> =
        (0..8).map(|i| hps_core::tier::TableSpec { name: format!("t{i}"), ..spec(SIZE) }).collect();
    let tiers = [(); 2].map(|()| SharedTier::open(&settings(parent.path()), &specs).unwrap());
    std::thread::scope(|scope| {
        for tier in &tiers {
            for table in 0..8u32 {
                scope.spawn(move || {
                    for key in 0..3_000u64 {
                        let row = row_of(key, 1, SIZE);
                        tier.insert(hps_core::TableId(table), &[key], Rows::new(&row, SIZE).unwrap())
                            .unwrap();
                    }
                });
            }
        }
    });
    for table in (0..8).map(hps_core::TableId) {
        assert_eq!(tiers[0].usage(table).unwrap().rows, 3_000);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_sum() {
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&SharedSettings { size_bytes: 1 << 20, ..settings(parent.path()) }, SIZE);
    load(&tier, SIZE, &(0..1_000).collect::<Vec<_>>(), 1, "record");
    let error = tier.begin_load(TABLE, Expected::rows(1_000_000)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let text = error.to_string();
    assert!(
        text.contains("shared_memory_size") && text.contains("1048576") && text.contains("hps_et.test.table"),
        "{text}"
    );
    // Nor do rows that come one by one; those that are there stay.
    let mut refused = 0;
    for key in 1_000..30_000u64 {
        let rows = row_of(key, 1, SIZE);
        match tier.insert(TABLE, &[key], Rows::new(&rows, SIZE).unwrap()) {
            Ok(()) => assert!(lookup(&tier, SIZE, &[key])[0].is_some()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                refused += 1;
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
    assert_eq!(lookup(&tier, SIZE, &[999]), [Some(row_of(999, 1, SIZE))]);
    insert(&tier, SIZE, &[999], 2);
    assert_eq!(lookup(&tier, SIZE, &[999]), [Some(row_of(999, 2, SIZE))]);
}

#[test]
fn a_table_of_other_sizes_is_replaced_by_a_load_and_an_error_for_the_others() {
    let parent = tempfile::tempdir().unwrap();
    let old = open(&settings(parent.path()), SIZE);
    load(&old, SIZE, &[1], 1, "record");
    let new = open(&settings(parent.path()), 2 * SIZE);
    assert_eq!(new.held(TABLE).unwrap(), Held::Nothing);
    load(&new, 2 * SIZE, &[1], 2, "record");
    assert_eq!(lookup(&new, 2 * SIZE, &[1]), [Some(row_of(1, 2, 2 * SIZE))]);
    let mut out = vec![0; SIZE];
    let mut rows = hps_core::RowsMut::from_bytes(&mut out, SIZE).unwrap();
    let error = old.lookup(TABLE, hps_core::Batch::all(&[1]), &mut rows, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("128 bytes"), "{error}");
}

#[test]
fn only_the_process_that_came_first_fills_a_cache() {
    let parent = tempfile::tempdir().unwrap();
    let cache = SharedSettings { role: Role::Cache, ..settings(parent.path()) };
    let first = open(&cache, SIZE);
    let second = open(&cache, SIZE);
    assert!(first.fills() && !second.fills());
    let clock = UpdateClock::default();
    let snapshot = clock.snapshot();
    let rows = rows_of(&[1, 2], 1, SIZE);
    let promotion =
        |keys| Promotion { keys, rows: Rows::new(&rows, SIZE).unwrap(), clock: &clock, snapshot: &snapshot };
    second.reserve(TABLE, Expected::rows(10)).unwrap();
    assert_eq!(second.promote(TABLE, promotion(&[1, 2])).unwrap(), 0);
    first.reserve(TABLE, Expected::rows(10)).unwrap();
    assert_eq!(first.promote(TABLE, promotion(&[1, 2])).unwrap(), 2);
    assert_eq!(lookup(&second, SIZE, &[1, 2, 3]).iter().filter(|row| row.is_some()).count(), 2);
    // Who writes the database below has to fill.
    let writer = SharedSettings { must_fill: true, ..cache.clone() };
    let error = SharedTier::open(&writer, &[spec(SIZE)]).unwrap_err();
    assert!(error.to_string().contains("read_only"), "{error}");
    // The next one to fill begins anew: nobody knows what the database holds by now.
    drop(first);
    assert_eq!(lookup(&second, SIZE, &[1]), [Some(row_of(1, 1, SIZE))]);
    let next = open(&writer, SIZE);
    assert!(next.fills());
    assert_eq!(lookup(&second, SIZE, &[1]), [None]);
    next.promote(TABLE, promotion(&[1, 2])).unwrap();
    assert_eq!(lookup(&second, SIZE, &[2]), [Some(row_of(2, 1, SIZE))]);
}

#[test]
fn processes_load_one_after_the_other() {
    const NAME: &str = "processes_load_one_after_the_other";
    let keys: Vec<Key> = (0..2_000).collect();
    if let Some((_, tier)) = task() {
        let _turn = tier.loading(|| ()).unwrap();
        if tier.held(TABLE).unwrap() == Held::Nothing {
            std::thread::sleep(Duration::from_millis(50));
            let me = format!("{}", std::process::id());
            load(&tier, SIZE, &keys, 1, &me);
        }
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    let turn = tier.loading(|| ()).unwrap();
    let mut children: Vec<Child> = (0..6).map(|_| start(NAME, "load", parent.path())).collect();
    std::thread::sleep(Duration::from_millis(100));
    assert!(children.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "they wait");
    drop(turn);
    children.into_iter().for_each(finish);
    let Held::Table(loader) = tier.held(TABLE).unwrap() else { panic!("nobody has loaded it") };
    assert!(loader.parse::<u32>().is_ok());
    assert!(lookup(&tier, SIZE, &keys).iter().all(Option::is_some));
}

#[test]
fn a_child_made_by_fork_keeps_no_lock_of_a_process_that_is_killed() {
    const NAME: &str = "a_child_made_by_fork_keeps_no_lock_of_a_process_that_is_killed";
    if let Some((_, tier)) = task() {
        let _turn = tier.loading(|| ()).unwrap();
        // SAFETY: the child only waits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends it if nobody else does.
            unsafe { libc::alarm(60) };
        } else {
            let folder = std::path::PathBuf::from(std::env::var(FOLDER).unwrap());
            std::fs::write(folder.join("part"), child.to_string()).unwrap();
            std::fs::rename(folder.join("part"), folder.join("child")).unwrap();
        }
        loop {
            std::thread::park();
        }
    }
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    let mut loader = start(NAME, "load", parent.path());
    let child = loop {
        assert!(loader.try_wait().unwrap().is_none(), "the loader has ended");
        match std::fs::read_to_string(parent.path().join("child")) {
            Ok(child) => break child.parse::<i32>().unwrap(),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        scope.spawn(move || sender.send(tier.loading(|| ()).map(drop)).unwrap());
        let early = receiver.recv_timeout(Duration::from_millis(200));
        loader.kill().unwrap();
        loader.wait().unwrap();
        let granted = receiver.recv_timeout(Duration::from_secs(20));
        // SAFETY: it was started above, and nobody has waited for it.
        let is_child_alive = unsafe { libc::kill(child, libc::SIGKILL) } == 0;
        assert!(is_child_alive && early.is_err(), "the loader had its turn, child or not");
        granted.expect("its child keeps the lock").unwrap();
    });
}

#[test]
fn a_child_made_by_fork_may_use_the_numbers_of_files_that_it_has_closed() {
    const NAME: &str = "a_child_made_by_fork_may_use_the_numbers_of_files_that_it_has_closed";
    const NUMBERS: std::ops::Range<i32> = 3..256;
    let fork_and_wait = |child: &dyn Fn()| {
        // SAFETY: children call nothing but what is allowed between fork and exec.
        let number = unsafe { libc::fork() };
        if number == 0 {
            child();
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: nothing is written through a null pointer.
        assert_eq!(unsafe { libc::waitpid(number, std::ptr::null_mut(), 0) }, number);
    };
    if let Some((_, _tier)) = task() {
        let folder = std::env::var(FOLDER).unwrap();
        let log = std::ffi::CString::new(format!("{folder}/log")).unwrap();
        fork_and_wait(&|| {
            // One of them was that of the lock file.
            for number in NUMBERS {
                // SAFETY: nobody uses it here.
                unsafe { libc::close(number) };
            }
            for _ in NUMBERS {
                let how = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
                // SAFETY: the path ends with a zero.
                unsafe { libc::open(log.as_ptr(), how, 0o600) };
            }
            fork_and_wait(&|| {
                for number in NUMBERS {
                    // SAFETY: one byte of a static text.
                    unsafe { libc::write(number, c"x".as_ptr().cast(), 1) };
                }
            });
        });
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    finish(start(NAME, "fork", parent.path()));
    assert_eq!(std::fs::read(parent.path().join("log")).unwrap().len(), NUMBERS.len());
}

#[test]
fn readers_see_whole_rows_while_another_process_writes() {
    const NAME: &str = "readers_see_whole_rows_while_another_process_writes";
    const KEYS: u64 = 300;
    if let Some((_, tier)) = task() {
        let keys: Vec<Key> = (0..KEYS).collect();
        for version in 2.. {
            insert(&tier, SIZE, &keys, version % 1_000 + 1);
            // Rows that come and go use slots and entries again.
            let others: Vec<Key> = (0..KEYS).map(|i| version << 32 | i).collect();
            insert(&tier, SIZE, &others, 1);
            tier.erase(TABLE, &others).unwrap();
        }
    }
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    let keys: Vec<Key> = (0..KEYS).collect();
    load(&tier, SIZE, &keys, 1, "record");
    let mut writer = start(NAME, "write", parent.path());
    let done = AtomicBool::new(false);
    let checked = std::thread::scope(|scope| {
        let check = || {
            let mut checked = 0;
            while !done.load(Relaxed) {
                for (key, row) in keys.iter().zip(lookup(&tier, SIZE, &keys)) {
                    let row = row.unwrap_or_else(|| panic!("key {key} is gone"));
                    assert!((1..=1_000).any(|version| row == row_of(*key, version, SIZE)), "torn: key {key}");
                    checked += 1;
                }
            }
            checked
        };
        let readers = [scope.spawn(check), scope.spawn(check)];
        std::thread::sleep(Duration::from_secs(3));
        done.store(true, Relaxed);
        readers.map(|reader| reader.join().unwrap()).iter().sum::<u64>()
    });
    assert!(checked > 1_000, "{checked}");
    assert!(writer.try_wait().unwrap().is_none(), "the writer has ended");
    writer.kill().unwrap();
    writer.wait().unwrap();
}

/// Kills a process at random moments of what it does over and over; checks what it leaves.
fn kill_rounds(test: &str, task: &str, rounds: u64, mut check: impl FnMut(&SharedTier)) {
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    load(&tier, SIZE, &(0..2_000).collect::<Vec<_>>(), 1, "record 1");
    let began = Instant::now();
    for round in 0..rounds {
        let mut child = start(test, task, parent.path());
        // From before it has opened the segment to well into its work.
        let pause = 2_000 + hps_core::key::mix(round ^ std::process::id() as u64) % 25_000;
        std::thread::sleep(Duration::from_micros(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        check(&tier);
    }
    println!("{rounds} kills in {:.1} s", began.elapsed().as_secs_f64());
}

fn num_kills() -> u64 {
    std::env::var("HPS_SOAK_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

#[test]
fn a_writer_may_be_killed_at_any_time() {
    const NAME: &str = "a_writer_may_be_killed_at_any_time";
    if let Some((_, tier)) = task() {
        for step in 0u64.. {
            let version = step % 50 + 2;
            let keys: Vec<Key> = (0..2_000).filter(|key| key % 7 != step % 7).collect();
            insert(&tier, SIZE, &keys, version);
            let passing: Vec<Key> = (0..500).map(|i| 10_000 + (step * 500 + i) % 5_000).collect();
            insert(&tier, SIZE, &passing, version);
            tier.erase(TABLE, &passing[..250]).unwrap();
        }
    }
    let (mut bytes, mut rounds_written) = (0, 0);
    kill_rounds(NAME, "write", num_kills(), |tier| {
        // Keys that are only overwritten are all there, each row whole.
        let keys: Vec<Key> = (0..2_000).collect();
        rounds_written += u64::from(tier.usage(TABLE).unwrap().rows > 2_000);
        for (key, row) in keys.iter().zip(lookup(tier, SIZE, &keys)) {
            let row = row.unwrap_or_else(|| panic!("key {key} is lost"));
            assert!((1..52).any(|version| row == row_of(*key, version, SIZE)), "torn: key {key}");
        }
        // The next writer finds everything in order: as many rows as there are, and no slot lost.
        insert(tier, SIZE, &[1], 1);
        assert_eq!(lookup(tier, SIZE, &[1]), [Some(row_of(1, 1, SIZE))]);
        let mut rows = 0;
        tier.scan(TABLE, &mut |keys, _| {
            rows += keys.len() as u64;
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(tier.usage(TABLE).unwrap().rows, rows);
        assert!((2_000..=7_000).contains(&rows), "{rows}");
        bytes = tier.usage(TABLE).unwrap().bytes;
        assert!(bytes < 4_000_000, "{bytes} bytes");
        let others: Vec<Key> = (10_000..15_000).collect();
        tier.erase(TABLE, &others).unwrap();
    });
    println!("{rounds_written} of the processes had come to write");
    assert!(rounds_written > num_kills() / 4, "the writers hardly came to write: {rounds_written}");
}

#[test]
fn a_loader_may_be_killed_at_any_time() {
    const NAME: &str = "a_loader_may_be_killed_at_any_time";
    if let Some((_, tier)) = task() {
        for version in 2u64.. {
            let _turn = tier.loading(|| ()).unwrap();
            let version = version % 50 + 2;
            load(&tier, SIZE, &(0..2_000).collect::<Vec<_>>(), version, &format!("record {version}"));
        }
    }
    let mut replaced = 0;
    kill_rounds(NAME, "load", num_kills(), |tier| {
        let Held::Table(record) = tier.held(TABLE).unwrap() else { panic!("the table is gone") };
        let version: u64 = record.strip_prefix("record ").unwrap().parse().unwrap();
        replaced += u64::from(version > 1);
        let keys: Vec<Key> = (0..2_000).collect();
        for (key, row) in keys.iter().zip(lookup(tier, SIZE, &keys)) {
            assert_eq!(row, Some(row_of(*key, version, SIZE)), "key {key}");
        }
        // What was half loaded is cleared away by the next load.
        let _turn = tier.loading(|| ()).unwrap();
        load(tier, SIZE, &keys, 1, "record 1");
        let bytes = tier.usage(TABLE).unwrap().bytes;
        assert!(bytes < 1_000_000, "{bytes}");
    });
    assert!(replaced > 0, "no load came to its end in time");
}

#[test]
fn a_limit_holds_and_rows_in_use_stay() {
    for policy in [EvictionPolicy::Random, EvictionPolicy::LeastUsed, EvictionPolicy::Oldest] {
        let parent = tempfile::tempdir().unwrap();
        let tier = open(&limited(parent.path(), 2_000, policy), SIZE);
        insert(&tier, SIZE, &(0..2_000).collect::<Vec<_>>(), 1);
        let bytes = tier.usage(TABLE).unwrap().bytes;
        let used: Vec<Key> = (0..300).collect();
        for round in 1..60u64 {
            (0..3).for_each(|_| drop(lookup(&tier, SIZE, &used)));
            let passing: Vec<Key> = (0..200).map(|i| round << 32 | i).collect();
            insert(&tier, SIZE, &passing, 1);
            assert_eq!(tier.usage(TABLE).unwrap().rows, 2_000);
        }
        assert!(tier.usage(TABLE).unwrap().bytes <= bytes * 2);
        let kept = lookup(&tier, SIZE, &used).iter().filter(|row| row.is_some()).count();
        match policy {
            EvictionPolicy::Random => assert!(kept < 30, "{kept}"),
            _ => assert!(kept > 295, "{policy:?} keeps {kept} of 300 rows in use"),
        }
    }
}

#[test]
fn it_grows_and_memory_is_used_again() {
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    let keys: Vec<Key> = (0..60_000).map(|i| i * 7_919).collect();
    keys.chunks(500).for_each(|keys| insert(&tier, SIZE, keys, 1));
    // Another tier sees what was added before and after it came.
    let other = open(&settings(parent.path()), SIZE);
    for (key, row) in keys.iter().zip(lookup(&other, SIZE, &keys)) {
        assert_eq!(row, Some(row_of(*key, 1, SIZE)));
    }
    let bytes = tier.usage(TABLE).unwrap().bytes;
    assert!(bytes < 60_000 * 2 * (SIZE as u64 + 26), "{bytes}");
    for round in 2..12 {
        tier.erase(TABLE, &keys[10_000..]).unwrap();
        assert_eq!(other.usage(TABLE).unwrap().rows, 10_000);
        keys[10_000..].chunks(500).for_each(|keys| insert(&tier, SIZE, keys, round));
    }
    assert_eq!(lookup(&other, SIZE, &[keys[59_999]]), [Some(row_of(keys[59_999], 11, SIZE))]);
    let later = tier.usage(TABLE).unwrap().bytes;
    assert!(later <= bytes + bytes / 8, "{bytes} bytes became {later}");
}

/// Files of a table's pieces, its description among them.
fn num_files(parent: &Path) -> usize {
    let folders = std::fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).map(|path| std::fs::read_dir(path).unwrap().count()).sum()
}

#[test]
fn a_large_table_that_grows_gets_few_pieces() {
    let parent = tempfile::tempdir().unwrap();
    let tier = SharedTier::open(&settings(parent.path()), &[spec(4)]).unwrap();
    let keys = |from: u64| -> Vec<Key> { (from..from + 1_000_000).map(mix).collect() };
    load(&tier, 4, &keys(0), 1, "record");
    let before = num_files(parent.path());
    for from in [1_000_000, 2_000_000] {
        keys(from).chunks(10_000).for_each(|keys| insert(&tier, 4, keys, 1));
    }
    let more = num_files(parent.path()) - before;
    assert!((1..=6).contains(&more), "{more} pieces for three times the rows");
    assert_eq!(tier.usage(TABLE).unwrap().rows, 3_000_000);
}

#[test]
fn nobody_can_make_keys_collide() {
    let parent = tempfile::tempdir().unwrap();
    let tier = open(&settings(parent.path()), SIZE);
    insert(&tier, SIZE, &[0], 1);
    let bytes = tier.usage(TABLE).unwrap().bytes;
    // Both halves of their hash, as far as anybody knows it, are nearly the same.
    let is_near = |hash: u64| (hash >> 32) < 1 << 26 && (hash & 0xFFFF_FFFF) < 1 << 26;
    let keys: Vec<Key> = (1..).filter(|&key| is_near(mix(key))).take(200).collect();
    insert(&tier, SIZE, &keys, 1);
    assert_eq!(tier.usage(TABLE).unwrap().bytes, bytes, "it need not grow for 200 rows");
    assert!(lookup(&tier, SIZE, &keys).iter().all(Option::is_some));
}

#[test]
fn a_row_takes_26_bytes_more_than_its_own() {
    let parent = tempfile::tempdir().unwrap();
    for row_bytes in [4, 512] {
        let tier = SharedTier::open(&settings(parent.path()), &[spec(row_bytes)]).unwrap();
        let keys: Vec<Key> = (0..200_000).map(mix).collect();
        load(&tier, row_bytes, &keys, 1, "record");
        let usage = tier.usage(TABLE).unwrap();
        let more = usage.bytes as f64 / usage.rows as f64 - row_bytes as f64;
        // Of the pieces for keys that find no place, a 256th of the row comes on top, or 1,024 rows.
        assert!(more < 26.2 + row_bytes as f64 / 128.0, "{more} bytes of a row of {row_bytes}");
    }
}
