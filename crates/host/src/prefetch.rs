//! Asks the processor to bring memory near before it is read.

const LINE_BYTES: usize = 64;

/// Brings the first cache line of `value` near.
#[inline(always)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    prefetch_address(std::ptr::from_ref(value).cast());
}

/// Brings `bytes` near, at most `max_lines` cache lines of them: the processor runs ahead by itself in longer rows.
#[inline(always)]
pub(crate) fn prefetch_bytes(bytes: &[u8], max_lines: usize) {
    for line in bytes.chunks(LINE_BYTES).take(max_lines) {
        prefetch(line);
    }
}

#[inline(always)]
fn prefetch_address(address: *const i8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see and never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
