//! How fast the time stamp counter runs, measured once, and what time it is.
//!
//! The measure is the ACPI timer, or else channel 2 of the 8254: both run at a rate that never changes. What the CPU says of its
//! own rate is more exact where it is true, and is believed where it agrees with the measure: emulators say what they like.

use super::host_apic::HostApic;
use super::{Leaf, cpuid, in8, in32, out8, read_tsc};
use crate::machine::PmTimer;

/// The ACPI timer's rate (ACPI 4.8.3.3), and that of the 8254.
const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
/// How long is measured.
const MEASURE_US: u64 = 4000;
/// How often is measured, while the measures are doubtful.
const ATTEMPTS: usize = 16;
/// What may be uncertain of a measure, in 65536ths: 1 in 128.
const GOOD_ENOUGH: u64 = 512;
/// How often a reference is looked at before it counts as dead.
const MOST_LOOKS: u32 = 1_000_000;

/// What was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// The time stamp counter's ticks in a second.
    pub tsc_hz: u64,
    /// The APIC timer's ticks for 2^32 of the time stamp counter.
    pub apic_ratio: u64,
    /// Who said so.
    pub source: Source,
}

/// Where the rate is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Measured by the ACPI timer.
    PmTimer,
    /// Measured by the 8254.
    Pit,
    /// The CPU's or the hypervisor's word, which agrees with the measure.
    Cpu,
}

/// Both counters at one moment of the reference.
#[derive(Clone, Copy)]
struct Sample {
    reference: u32,
    tsc: u64,
    apic: u32,
    /// How long it took to look at all three, by the time stamp counter: whoever shares the CPU below us may have had it meanwhile.
    took: u64,
}

/// Two samples, and what they are samples of.
struct Span {
    first: Sample,
    last: Sample,
    hz: u64,
    source: Source,
}

impl Span {
    fn elapsed_tsc(&self) -> u64 {
        self.last.tsc.wrapping_sub(self.first.tsc)
    }

    /// How much of it is uncertain, in 65536ths.
    fn doubt(&self) -> u64 {
        let took = self.first.took.saturating_add(self.last.took);
        took.saturating_mul(1 << 16).checked_div(self.elapsed_tsc()).unwrap_or(u64::MAX)
    }
}

/// Measures; `None` if the machine has no reference that runs.
#[must_use]
pub fn measure(pm_timer: Option<PmTimer>, apic: &HostApic) -> Option<Rates> {
    apic.start_counting();
    let mut best: Option<Span> = None;
    for _ in 0..ATTEMPTS {
        let Some(span) = span(pm_timer, apic) else { break };
        if best.as_ref().is_none_or(|best| span.doubt() < best.doubt()) {
            best = Some(span);
        }
        if best.as_ref().is_some_and(|best| best.doubt() <= GOOD_ENOUGH) {
            break;
        }
    }
    apic.stop_counting();
    let span = best?;
    let Span { first, last, hz, source } = span;
    let elapsed_tsc = span.elapsed_tsc();
    let tsc_hz = rate(elapsed_tsc, u64::from(last.reference.wrapping_sub(first.reference)), hz);
    // It counts down.
    let elapsed_apic = first.apic.wrapping_sub(last.apic);
    let apic_ratio = (u64::from(elapsed_apic) << 32) / elapsed_tsc.max(1);
    let (tsc_hz, source) = match believed(said_by_cpu(), tsc_hz) {
        Some(said) => (said, Source::Cpu),
        None => (tsc_hz, source),
    };
    Some(Rates { tsc_hz, apic_ratio, source })
}

/// One measure by the ACPI timer, or else by the 8254.
fn span(pm_timer: Option<PmTimer>, apic: &HostApic) -> Option<Span> {
    let by_pm = pm_timer.and_then(|timer| {
        let mask = if timer.is_wide { u32::MAX } else { 0x00ff_ffff };
        let (first, last) = samples(&|| pm_count(timer), mask, PM_HZ, apic)?;
        Some(Span { first, last, hz: PM_HZ, source: Source::PmTimer })
    });
    by_pm.or_else(|| {
        start_pit();
        let (first, last) = samples(&pit_count, 0xffff, PIT_HZ, apic)?;
        Some(Span { first, last, hz: PIT_HZ, source: Source::Pit })
    })
}

/// Looks at the counters twice, [`MEASURE_US`] apart, each time when the reference has just ticked. `read` counts up, modulo
/// `mask` + 1; the samples' references count on beyond it.
fn samples(read: &dyn Fn() -> u32, mask: u32, hz: u64, apic: &HostApic) -> Option<(Sample, Sample)> {
    let start = read();
    let mut looks = 0..MOST_LOOKS;
    let mut look = |wanted: &dyn Fn(u32) -> Option<u32>| {
        looks.find_map(|_| {
            let before = read_tsc();
            let reference = wanted(read())?;
            let tsc = read_tsc();
            let apic = apic.count();
            Some(Sample { reference, tsc, apic, took: read_tsc().wrapping_sub(before) })
        })
    };
    let first = look(&|now| (now != start).then_some(now))?;
    let wanted = u32::try_from(MEASURE_US * hz / 1_000_000).unwrap_or(mask);
    let last = look(&|now| {
        let elapsed = now.wrapping_sub(first.reference) & mask;
        (elapsed >= wanted).then(|| first.reference.wrapping_add(elapsed))
    })?;
    Some((first, last))
}

/// Ticks in a second of what ticked `elapsed` times while a reference of `hz` ticked `reference` times.
fn rate(elapsed: u64, reference: u64, hz: u64) -> u64 {
    u64::try_from(u128::from(elapsed) * u128::from(hz) / u128::from(reference.max(1))).unwrap_or(u64::MAX)
}

/// What `said` is worth beside `measured`: nothing if they differ by more than 1 in 256.
fn believed(said: Option<u64>, measured: u64) -> Option<u64> {
    said.filter(|said| said.abs_diff(measured) <= measured / 256)
}

/// The rate that the hypervisor below us (leaf 0x4000_0010, in kHz) or the CPU (SDM Vol. 2A, CPUID leaf 15H) names.
fn said_by_cpu() -> Option<u64> {
    const BELOW_A_HYPERVISOR: u32 = 1 << 31;
    const TIMING: u32 = 0x4000_0010;
    if cpuid(1, 0).ecx & BELOW_A_HYPERVISOR != 0
        && (TIMING..TIMING + 0x100).contains(&cpuid(0x4000_0000, 0).eax)
    {
        return Some(u64::from(cpuid(TIMING, 0).eax) * 1000).filter(|hz| *hz != 0);
    }
    if cpuid(0, 0).eax < 0x15 {
        return None;
    }
    let Leaf { eax: denominator, ebx: numerator, ecx: crystal_hz, .. } = cpuid(0x15, 0);
    u64::from(crystal_hz).checked_mul(numerator.into())?.checked_div(denominator.into()).filter(|hz| *hz != 0)
}

fn pm_count(timer: PmTimer) -> u32 {
    // SAFETY: reading the timer changes nothing.
    let value = unsafe { in32(timer.port) };
    if timer.is_wide { value } else { value & 0x00ff_ffff }
}

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const GATE: u16 = 0x61;

/// Lets channel 2 count down from 65536, unheard.
fn start_pit() {
    const GATE_2: u8 = 1;
    const SPEAKER: u8 = 2;
    /// Channel 2, both bytes, mode 0.
    const ONCE: u8 = 0xb0;
    let gate = port(GATE) & !(GATE_2 | SPEAKER);
    set_port(GATE, gate);
    set_port(PIT_COMMAND, ONCE);
    set_port(PIT_CHANNEL_2, 0);
    set_port(PIT_CHANNEL_2, 0);
    set_port(GATE, gate | GATE_2);
}

/// How often channel 2 has ticked since.
fn pit_count() -> u32 {
    const LATCH_2: u8 = 0x80;
    set_port(PIT_COMMAND, LATCH_2);
    let low = port(PIT_CHANNEL_2);
    u32::from(u16::from_le_bytes([low, port(PIT_CHANNEL_2)]).wrapping_neg())
}

/// Nanoseconds since 1970 by the machine's battery-backed clock; 0 if there is none.
#[must_use]
pub fn wall_clock_ns(century: Option<u8>) -> u64 {
    const UPDATING: u8 = 0x80;
    let status = || cmos(0x0a);
    let mut before = None;
    // The clock takes 2 ms to update: then two looks agree.
    for _ in 0..MOST_LOOKS / 100 {
        if status() & UPDATING != 0 {
            before = None;
            continue;
        }
        let now = [0, 2, 4, 7, 8, 9].map(cmos);
        if before == Some(now) {
            let century = century.map(cmos);
            return unix_seconds(now, century, cmos(0x0b)).unwrap_or(0).saturating_mul(1_000_000_000);
        }
        before = Some(now);
    }
    0
}

/// Seconds since 1970 of a clock's second, minute, hour, day, month and year (MC146818: status B says the form); `None` if that
/// is no date.
fn unix_seconds(fields: [u8; 6], century: Option<u8>, status_b: u8) -> Option<u64> {
    const BINARY: u8 = 1 << 2;
    const HOURS_24: u8 = 1 << 1;
    const AFTERNOON: u8 = 0x80;
    let number =
        |value: u8| u64::from(if status_b & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) });
    let [second, minute, hour, day, month, year] = fields;
    let hour = if status_b & HOURS_24 != 0 {
        number(hour)
    } else {
        number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    let century = century.map(number).filter(|century| (19..=22).contains(century)).unwrap_or(20);
    let (day, month, year) = (number(day), number(month), century * 100 + number(year));
    if !(1..=31).contains(&day) || !(1..=12).contains(&month) || year < 1970 || hour > 23 {
        return None;
    }
    Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + number(minute)) * 60 + number(second))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that a leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    const DAYS_TO_1970: u64 = 719_468;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_month = (153 * month + 2) / 5;
    year * 365 + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - DAYS_TO_1970
}

fn cmos(index: u8) -> u8 {
    const MASK_NMI: u8 = 0x80;
    set_port(0x70, index | MASK_NMI);
    let value = port(0x71);
    set_port(0x70, 0);
    value
}

fn port(port: u16) -> u8 {
    // SAFETY: the ports of the 8254, of its gate and of the clock: reading them changes nothing in memory.
    unsafe { in8(port) }
}

fn set_port(port: u16, value: u8) {
    // SAFETY: as above.
    unsafe { out8(port, value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_seconds_of_that_date() {
        let binary = 0b110;
        assert_eq!(unix_seconds([0, 0, 0, 1, 1, 70], Some(19), binary), Some(0));
        assert_eq!(unix_seconds([40, 46, 1, 9, 9, 1], Some(20), binary), Some(1_000_000_000));
        assert_eq!(unix_seconds([0, 0, 0, 29, 2, 24], None, binary), Some(1_709_164_800));
    }

    #[test]
    fn bcd_and_twelve_hours_are_understood() {
        assert_eq!(unix_seconds([0x40, 0x46, 0x01, 9, 9, 1], None, 0b010), Some(1_000_000_000));
        assert_eq!(unix_seconds([0, 0, 0x12, 1, 1, 0x70], Some(0x19), 0), Some(0), "12 AM is midnight");
        assert_eq!(unix_seconds([0, 0, 0x92, 1, 1, 0x70], Some(0x19), 0), Some(43_200), "12 PM is noon");
    }

    #[test]
    fn what_is_no_date_is_none() {
        assert_eq!(unix_seconds([0xff; 6], None, 0xff), None);
        assert_eq!(unix_seconds([0, 0, 0, 0, 0, 0], None, 2), None);
    }

    #[test]
    fn the_cpus_word_counts_only_if_it_is_near() {
        assert_eq!(believed(Some(3_000_000_000), 2_999_000_000), Some(3_000_000_000));
        assert_eq!(believed(Some(3_500_000_000), 50_000_000), None);
        assert_eq!(believed(None, 50_000_000), None);
    }

    #[test]
    fn a_rate_is_a_proportion() {
        assert_eq!(rate(4_000_000, 14_318, PM_HZ), 1_000_012_571);
        assert_eq!(rate(5, 0, 1), 5, "never by zero");
    }
}
