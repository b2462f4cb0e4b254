//! Asks the processor to bring memory near before it is read.

/// Of the processor's caches.
pub(crate) const LINE_BYTES: usize = 64;
/// Longer rows go no further than the second-level cache: it has several times as many requests under way as the first.
const MAX_NEAREST_LINES: usize = 3;

/// Into the first-level cache; into the second-level cache: x86-64's `_MM_HINT_T0` and `_MM_HINT_T1`.
const NEAREST: i32 = 3;
const NEAR: i32 = 2;

/// Brings the first cache line of `value` near.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    ask::<NEAREST>(std::ptr::from_ref(value).cast());
}

/// Brings that many cache lines of a row near, from an address on that may be anything.
#[inline(always)]
pub(crate) fn prefetch_lines(address: *const u8, num_lines: usize) {
    let lines = (0..num_lines).map(|line| address.wrapping_add(line * LINE_BYTES).cast());
    if num_lines <= MAX_NEAREST_LINES { lines.for_each(ask::<NEAREST>) } else { lines.for_each(ask::<NEAR>) }
}

#[inline(always)]
fn ask<const HINT: i32>(address: *const i8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see and never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(address);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
