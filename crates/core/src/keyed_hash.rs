//! The two buckets of a key in an index, by a hash that is keyed with random numbers: nobody can make keys collide.

/// What makes the hashes of one index unpredictable.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    flip: u64,
    multiplier: u64,
}

impl Seeds {
    /// Of two numbers that are drawn by chance.
    pub fn new(flip: u64, multiplier: u64) -> Self {
        Self { flip, multiplier: multiplier | 1 }
    }

    /// `mixed` is `mix(key)`. Which partition it belongs to says nothing about the halves of the result.
    #[inline(always)]
    pub fn hash(self, mixed: u64) -> Hash {
        let product = u128::from(mixed ^ self.flip) * u128::from(self.multiplier);
        Hash(product as u64 ^ (product >> 64) as u64)
    }
}

/// A key's hash in one index; worthless with other seeds.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// The first of a key's two buckets.
    #[inline(always)]
    pub fn first_bucket(self, num_buckets: usize) -> usize {
        (((self.0 >> 32) * num_buckets as u64) >> 32) as usize
    }

    /// The second one: another, unless there is only one.
    #[inline(always)]
    pub fn second_bucket(self, num_buckets: usize) -> usize {
        let second = (((self.0 & 0xFFFF_FFFF) * num_buckets as u64) >> 32) as usize;
        match second == self.first_bucket(num_buckets) {
            false => second,
            true if second + 1 == num_buckets => 0,
            true => second + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::mix;

    #[test]
    fn a_key_has_two_different_buckets_and_all_are_used_alike() {
        for num_buckets in [2, 3, 100] {
            let seeds = Seeds::new(7, 10);
            let mut uses = vec![0; num_buckets];
            for key in 0..10_000 {
                let hash = seeds.hash(mix(key));
                let both = (hash.first_bucket(num_buckets), hash.second_bucket(num_buckets));
                assert_ne!(both.0, both.1);
                uses[both.0] += 1;
                uses[both.1] += 1;
            }
            let mean = 20_000 / num_buckets;
            assert!(uses.iter().all(|&uses| uses > mean / 2 && uses < mean * 2), "{uses:?}");
        }
        assert_eq!(Seeds::new(1, 2).hash(5).second_bucket(1), 0);
    }
}
