use std::collections::HashMap;

use super::*;

/// Everything that lookups rely on.
fn check(index: &Index, oracle: &HashMap<Key, u32>) {
    assert_eq!(index.len(), oracle.len());
    assert_eq!(index.iter().count(), oracle.len());
    let mut away = vec![0; index.table.buckets.len()];
    for (&key, &slot) in oracle {
        assert_eq!(index.find(key), Some(slot), "key {key}");
        match index.view().approach(mix(key)).look(key) {
            (found, false) => assert_eq!(found, slot),
            (found, true) => {
                assert_eq!((found, index.view().approach_second(mix(key)).find(key)), (NO_SLOT, slot));
                away[index.table.both(key).0] += 1;
            }
        }
    }
    let counted: Vec<u32> = index.table.buckets.iter().map(Bucket::away).collect();
    assert_eq!(counted, away);
}

#[test]
fn keys_of_every_value_are_found_and_no_others() {
    let mut index = Index::new().unwrap();
    let mut oracle = HashMap::new();
    let hostile = hps_core::testing::hostile_keys(hps_core::KeyWidth::Bits64);
    for key in hostile.into_iter().chain(1_000..5_000) {
        if oracle.contains_key(&key) {
            continue;
        }
        let slot = oracle.len() as u32;
        index.insert_new(key, slot, 0).unwrap();
        oracle.insert(key, slot);
    }
    check(&index, &oracle);
    assert!((10_000..20_000).all(|key| index.find(key).is_none()));
}

#[test]
fn an_index_without_buckets_holds_nothing() {
    let mut index = Index::new().unwrap();
    assert_eq!(index.find(0), None);
    assert_eq!(index.view().approach(mix(0)).look(0), (NO_SLOT, false));
    assert_eq!(index.remove(0), None);
    assert_eq!(index.num_bytes(), 0);
}

#[test]
fn removal_keeps_the_others_and_the_counts() {
    let mut index = Index::new().unwrap();
    let mut oracle = HashMap::new();
    let mut random = Random::from_system();
    for round in 0..20_000u32 {
        let key = random.next_u64() % 3_000;
        match oracle.remove(&key) {
            Some(slot) => assert_eq!(index.remove(key), Some(slot)),
            None => {
                index.insert_new(key, round, 0).unwrap();
                oracle.insert(key, round);
            }
        }
    }
    check(&index, &oracle);
    let larger = index.larger(10_000).unwrap().unwrap();
    index.take(larger);
    check(&index, &oracle);
    let taken = index.num_bytes();
    assert!(index.larger(10_000).unwrap().is_none());
    for key in 100_000..110_000 {
        index.insert_new(key, key as u32, 0).unwrap();
    }
    assert_eq!(index.num_bytes(), taken);
}

#[test]
fn it_fills_to_the_load_that_the_memory_budget_counts_on() {
    let mut index = Index::new().unwrap();
    let mut worst: f64 = 0.0;
    for key in 0..150_000u64 {
        index.insert_new(key, key as u32, 0).unwrap();
        if key > 50_000 {
            worst = worst.max(index.num_bytes() as f64 / index.len() as f64);
        }
    }
    assert!(worst < 13.75, "{worst} bytes per key");
}

#[test]
fn marks_go_where_their_keys_go() {
    let mut index = Index::new().unwrap();
    let expected = |key: Key| (mix(key) % 16) as Mark;
    for key in 0..50_000u64 {
        index.insert_new(key, key as u32, expected(key)).unwrap();
        if key % 3 == 0 {
            index.remove(key / 2);
        }
    }
    assert!(index.set_slot(40_000, 99_999));
    let mut num_keys = 0;
    index.remark(|key, mark| {
        assert_eq!(mark, expected(key));
        num_keys += 1;
        15 - mark
    });
    assert_eq!(num_keys, index.len());
    index.touch(40_001, Use::Stamp { newest: 7 });
    index.touch(70_000, Use::Stamp { newest: 7 });
    index.remark(|key, mark| {
        assert_eq!(mark, if key == 40_001 { 7 } else { 15 - expected(key) });
        mark
    });
}

#[test]
fn a_reserved_index_takes_its_memory_once() {
    let mut index = Index::new().unwrap();
    index.reserve(100_000).unwrap();
    let taken = index.num_bytes();
    assert!((taken as f64) < 100_000.0 * 13.6, "{taken}");
    for key in 0..101_000u64 {
        index.insert_new(key << 32, key as u32, 0).unwrap();
    }
    assert_eq!(index.num_bytes(), taken);
    index.reserve(1_000).unwrap();
    assert_eq!(index.num_bytes(), taken);
}

/// The key whose `mix` is `mixed`. `x ^ rotr(x, a) ^ rotr(x, b)` is undone by doing it 63 times more: as a polynomial
/// of rotations its 64th power is 1.
fn unmix(mixed: u64) -> Key {
    let inverse = |odd: u64| (0..6).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))));
    let undo = |x: u64, a: u32, b: u32| (0..63).fold(x, |x, _| x ^ x.rotate_right(a) ^ x.rotate_right(b));
    let mut x = mixed ^ (mixed >> 28) ^ (mixed >> 56);
    x = undo(x.wrapping_mul(inverse(0x9FB2_1C65_1E98_DF25)), 24, 49);
    undo(x.wrapping_mul(inverse(0xA24B_AED4_963E_E407)), 25, 50)
}

/// Keys that share both buckets at any size of the index, made by someone who knows the hash.
#[test]
fn keys_that_collide_make_it_choose_another_hash() {
    assert_eq!(mix(unmix(0x0123_4567_89AB_CDEF)), 0x0123_4567_89AB_CDEF);
    let mut index = Index::new().unwrap();
    index.table.seeds = Seeds::new(0, 1);
    let colliding: Vec<Key> = (0..200).map(|i| unmix((7 << 50) | (2 << 30) | i)).collect();
    let mut oracle = HashMap::new();
    for (slot, &key) in colliding.iter().enumerate() {
        index.insert_new(key, slot as u32, 0).unwrap();
        oracle.insert(key, slot as u32);
    }
    check(&index, &oracle);
    assert!(index.num_bytes() < 20_000, "{} bytes for {} keys", index.num_bytes(), colliding.len());
}
