//! Time: the time stamp counter, measured against the interval timer.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{cpu, port};

/// The interval timer's clock (8254 data sheet; IBM PC Technical Reference).
pub const PIT_HERTZ: u64 = 1_193_182;
/// Gate and output of its third counter, and the speaker.
pub const GATE: u16 = 0x61;
const COUNTER2: u16 = 0x42;
const CONTROL: u16 = 0x43;
/// How long is measured: 20 ms.
const MEASURED: u64 = PIT_HERTZ / 50;
/// A bound on waiting for a counter that does not count.
const PATIENCE: u32 = 100_000_000;

static TICKS_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);

pub(crate) fn calibrate() {
    let [low, high, ..] = MEASURED.to_le_bytes();
    port::write8(GATE, port::read8(GATE) & !3 | 1);
    // Counter 2, both bytes, mode 0: the output rises at the end of the count.
    port::write8(CONTROL, 0xb0);
    port::write8(COUNTER2, low);
    port::write8(COUNTER2, high);
    let start = cpu::tsc();
    for _ in 0..PATIENCE {
        if port::read8(GATE) & 1 << 5 != 0 {
            break;
        }
    }
    TICKS_PER_MS.store(((cpu::tsc() - start) / 20).max(1), Relaxed);
}

/// Ticks of the time stamp counter in `microseconds`.
#[must_use]
pub fn ticks(microseconds: u64) -> u64 {
    TICKS_PER_MS.load(Relaxed).wrapping_mul(microseconds) / 1000
}

/// Microseconds in so many ticks.
#[must_use]
pub fn microseconds(ticks: u64) -> u64 {
    ticks.wrapping_mul(1000) / TICKS_PER_MS.load(Relaxed)
}

/// Waits until `done` holds, `microseconds` at most; whether it did.
pub fn spin_until(microseconds: u64, done: impl Fn() -> bool) -> bool {
    let end = cpu::tsc() + ticks(microseconds);
    loop {
        if done() {
            return true;
        }
        if cpu::tsc() >= end {
            return false;
        }
        cpu::pause();
    }
}

/// Lets `microseconds` pass.
pub fn delay(microseconds: u64) {
    spin_until(microseconds, || false);
}
