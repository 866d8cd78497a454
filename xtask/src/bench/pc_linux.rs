//! How long Linux takes on a PC from its first message to the start of /init, by a clock that is not Linux's own.
//!
//! The times of Linux's messages are no measure here: until all CPUs are up they follow the ticks of its first timer, and
//! stand still where it needs none yet (with a TSC deadline), or run ahead where it has two at once (QEMU's PIT beside its
//! HPET). The counter of the HPET does neither. Linux starts it anew early, says so, and lets the shell read it.

use regex::Regex;

/// What to type at the shell's prompt. The message has the least level, so that every console shows it.
pub(super) const QUESTION: &str = "echo '<0>bench-mark' > /dev/kmsg; devmem 0xfed000f0 32; devmem 0xfed00004 32; \
    dmesg | grep -E 'hpet: mask|symmetric I/O|Calibrating delay|Run /init'\\n";
/// The last line of the answer.
pub(super) const ANSWER_ENDS: &str = r"^\[[ 0-9.]+\] Run /init as init process";

/// The counter's period is told in these (IA-PC HPET 1.0a, 2.3.4).
const FEMTOSECONDS_PER_NS: f64 = 1e6;

/// Nanoseconds, without what lies between the two messages around the test of the first timer, which waits for its ticks.
///
/// Until the counter starts, and from /init on, messages have right times.
pub(super) fn nanoseconds(text: &str) -> Option<f64> {
    let started = stamp(text, "clocksource: hpet: mask")?;
    let tested = stamp(text, "Calibrating delay loop")? - stamp(text, "APIC: Switch to symmetric I/O mode")?;
    let since_init = stamp(text, "bench-mark")? - stamp(text, "Run /init as init process")?;
    let [count, femtoseconds] = words(text)?;
    Some(started + count * femtoseconds / FEMTOSECONDS_PER_NS - since_init - tested)
}

/// The time of the first message that starts so.
fn stamp(text: &str, start: &str) -> Option<f64> {
    let message = Regex::new(&format!(r"(?m)^\[\s*(\d+\.\d+)\] {}", regex::escape(start)));
    let seconds = message.expect("the pattern is valid").captures(text)?[1].parse::<f64>();
    Some(seconds.ok()? * 1e9)
}

/// The two numbers that `devmem` printed.
fn words(text: &str) -> Option<[f64; 2]> {
    let word = Regex::new(r"(?m)^0x([0-9A-F]{8})\r?$").expect("the pattern is valid");
    let mut words = word.captures_iter(text).filter_map(|found| u32::from_str_radix(&found[1], 16).ok());
    Some([f64::from(words.next()?), f64::from(words.next()?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[    0.000000] Linux version 6.1\r\n\
        [    0.080000] clocksource: hpet: mask: 0xffffffff max_cycles: 0xffffffff\r\n\
        [    0.081000] APIC: Switch to symmetric I/O mode setup\r\n\
        [    0.101000] Calibrating delay loop (skipped) preset value.. 2000.00 BogoMIPS\r\n\
        [    1.100000] Run /init as init process\r\n\
        ~ # echo '<0>bench-mark' > /dev/kmsg; devmem\r\n\
        [    1.300000] bench-mark\r\n\
        0x07735940\r\n0x00989680\r\n\
        [    1.100000] Run /init as init process\r\n";

    #[test]
    fn linux_is_timed_by_the_counter() {
        // 0.08 s before the counter started, 1.25 s on it, of which 0.2 s after /init began and 0.02 s in the test.
        let time = nanoseconds(TEXT).unwrap();
        assert!((time - 1.11e9).abs() < 1.0, "{time}");
    }

    #[test]
    fn without_a_counter_there_is_no_figure() {
        assert_eq!(nanoseconds(&TEXT.replace("0x00989680", "devmem: no")), None);
        assert_eq!(nanoseconds(&TEXT.replace("clocksource: hpet", "clocksource: none")), None);
    }
}
