//! `cargo xtask bench`: what each operation costs, in instructions.
//!
//! The emulator's clock counts instructions (`-icount shift=0`: one is one nanosecond), so every run gives the same figures
//! and a machine under load gives no others. The guest `bench` measures, under Bulkhead and natively; the boot of Linux is
//! measured by its own message times.

use anyhow::bail;
use bulkhead::config::Architecture;
use regex::Regex;
use serde_json::{Value, json};

use crate::boot::Under;
use crate::frames::LOG;
use crate::machine::{CpuModel, Machine};
use crate::progress::Step;
use crate::scenario::{self, file, transcript::Transcript};
use crate::workspace;

mod figures;
mod pc;
mod pc_linux;

use figures::{FIRST_INSTRUCTION_BAR, LINUX_BAR_PERMILLE, ROWS, Row};

const GUEST_IMAGE: &str = "tests/images/guest-bench";
const LINUX_IMAGE: &str = "images/linux-aarch64";

/// Runs until the guest powers off by itself.
const GUEST_STEPS: &str = "image = '.'\ncpus = 2\nicount = true\nlimit = '300 s'\n[end]\nmachine = 'off'";
const LINUX_STEPS: &str = r#"
image = "."
icount = true
limit = "600 s"
[[step]]
expect = 'Run /init as init process'
[[step]]
expect = '~ # '
[[step]]
send = "poweroff\n"
[end]
machine = "off"
"#;

/// A figure of ours with its verdict.
struct Figure {
    value: Option<f64>,
    /// Natively, where that makes sense.
    native: Option<f64>,
    /// It must be below; `None` where only cortex-a57 has a bar.
    bar: Option<f64>,
}

impl Figure {
    fn verdict(&self) -> &'static str {
        match (self.value, self.bar) {
            (None, _) => "MISSING",
            (Some(_), None) => "",
            (Some(value), Some(bar)) if value < bar => "ok",
            (Some(_), Some(_)) => "MISSED",
        }
    }

    fn is_missed(&self) -> bool {
        self.verdict().starts_with("MISS")
    }

    fn json(&self, name: &str) -> Value {
        json!({ "name": name, "value": self.value, "native": self.native, "below": self.bar, "ok": !self.is_missed() })
    }
}

/// Everything measured on one processor model.
struct Column {
    cpu: CpuModel,
    operations: Vec<(&'static Row, Figure)>,
    first_instruction: Figure,
    /// Of which copying and verifying what the guest boots.
    copying: Option<f64>,
    linux_permille: Figure,
}

/// `cargo xtask bench`
pub(crate) fn run(machine: Machine, cpu: Option<CpuModel>, as_json: bool) -> anyhow::Result<()> {
    if machine.architecture() != Architecture::Aarch64 {
        if cpu.is_some() {
            bail!("the bars are for one processor of machine {}: leave out `--cpu`", machine.name());
        }
        return pc::run(machine, as_json);
    }
    let models = cpu.map_or(vec![CpuModel::CortexA57, CpuModel::Max], |cpu| vec![cpu]);
    let columns = models.into_iter().map(|cpu| measure(machine, cpu)).collect::<anyhow::Result<Vec<_>>>()?;
    if as_json {
        let columns: Vec<Value> = columns.iter().map(Column::json).collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "unit": "instructions", "columns": columns }))?);
    } else {
        columns.iter().for_each(Column::print);
    }
    let missed: usize = columns.iter().map(Column::missed).sum();
    if missed > 0 {
        bail!("{missed} figures are missing or above their bar");
    }
    Ok(())
}

fn measure(machine: Machine, cpu: CpuModel) -> anyhow::Result<Column> {
    let guest = Runs::new(machine, cpu, GUEST_IMAGE, GUEST_STEPS)?;
    let linux = Runs::new(machine, cpu, LINUX_IMAGE, LINUX_STEPS)?;
    let has_bar = cpu == CpuModel::CortexA57;
    let operations = ROWS.iter().map(|row| {
        let bar = has_bar.then_some(f64::from(row.bar));
        (
            row,
            Figure { value: average(&guest.under, row.name), native: average(&guest.native, row.name), bar },
        )
    });
    let first = linux.log.as_deref().and_then(first_instruction);
    let first_bar = has_bar.then_some(f64::from(u32::try_from(FIRST_INSTRUCTION_BAR)?));
    let times = (linux_nanoseconds(&linux.under), linux_nanoseconds(&linux.native));
    let permille = match times {
        (Some(under), Some(native)) if native > 0.0 => Some((under - native) / native * 1000.0),
        _ => None,
    };
    Ok(Column {
        cpu,
        operations: operations.collect(),
        first_instruction: Figure { value: first.map(|(own, _)| own), native: None, bar: first_bar },
        copying: first.map(|(_, copying)| copying),
        linux_permille: Figure {
            value: permille,
            native: times.1,
            bar: has_bar.then_some(LINUX_BAR_PERMILLE),
        },
    })
}

/// What a guest printed under Bulkhead and natively, and Bulkhead's own log.
struct Runs {
    under: String,
    native: String,
    log: Option<String>,
}

impl Runs {
    fn new(machine: Machine, cpu: CpuModel, image: &str, steps: &str) -> anyhow::Result<Self> {
        let _step = Step::start(format!("counting instructions of {image} on {}", cpu.name()));
        let under = play(machine, cpu, image, steps, Under::Bulkhead)?;
        let native = play(machine, cpu, image, steps, Under::Nothing)?;
        Ok(Self { under: guest_text(&under), native: guest_text(&native), log: Some(under.text(LOG)) })
    }
}

fn play(
    machine: Machine,
    cpu: CpuModel,
    image: &str,
    steps: &str,
    under: Under,
) -> anyhow::Result<Transcript> {
    let mut scenario = file::parse(steps)?;
    scenario.image = workspace::root().join(image);
    (scenario.machine, scenario.cpu, scenario.under) = (Some(machine), Some(cpu), under);
    let played = scenario::play(&scenario, &mut |_| {})?;
    match played.failure {
        None => Ok(played.transcript),
        Some(failure) => {
            bail!("{image} on {} ({under:?}): {failure}\n{}", cpu.name(), played.transcript.tail())
        }
    }
}

fn guest_text(transcript: &Transcript) -> String {
    let guests = transcript.all().filter(|(console, _)| *console != LOG);
    guests.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The guest's line `bench NAME AVERAGE`.
fn average(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next() == Some("bench") && words.next() == Some(name);
        if is_it { words.next()?.parse().ok() } else { None }
    })
}

/// Bulkhead's line about its own boot: nanoseconds without copying, nanoseconds of copying.
fn first_instruction(log: &str) -> Option<(f64, f64)> {
    let line = Regex::new(r"boot: first guest instruction after (\d+) ns \((\d+) ns copying and verifying\)");
    let found = line.expect("the pattern is valid").captures(log)?;
    let (total, copying): (f64, f64) = (found[1].parse().ok()?, found[2].parse().ok()?);
    Some((total - copying, copying))
}

/// From Linux's first message to the start of /init, by the times that it prints. Its clock starts with the first message at
/// which it knows the timer, so what lies before is in neither figure.
fn linux_nanoseconds(text: &str) -> Option<f64> {
    let message = Regex::new(r"(?m)^\[\s*(\d+\.\d+)\] ([^\r\n]*)").expect("the pattern is valid");
    let mut times = message.captures_iter(text).map(|found| (found[1].parse::<f64>(), found[2].to_owned()));
    let (first, _) = times.next()?;
    let (last, _) = times.find(|(_, text)| text.starts_with("Run /init as init process"))?;
    Some((last.ok()? - first.ok()?) * 1e9)
}

/// Instructions in millions, as far as known.
fn million(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.2} M", value / 1e6))
}

impl Column {
    fn missed(&self) -> usize {
        let operations = self.operations.iter().filter(|(_, figure)| figure.is_missed()).count();
        operations
            + usize::from(self.first_instruction.is_missed())
            + usize::from(self.linux_permille.is_missed())
    }

    fn json(&self) -> Value {
        let operations: Vec<Value> =
            self.operations.iter().map(|(row, figure)| figure.json(row.name)).collect();
        json!({
            "cpu": self.cpu.name(),
            "operations": operations,
            "first-guest-instruction": self.first_instruction.json("first-guest-instruction"),
            "copying-and-verifying": self.copying,
            "linux-to-init-permille-over-native": self.linux_permille.json("linux-to-init"),
        })
    }

    fn print(&self) {
        println!("\n{}: instructions for each operation", self.cpu.name());
        let head = ["native", "KVM", "Xen", "Jailhouse", "Bao", "below", "Bulkhead"];
        let head: String = head.iter().map(|title| format!("{title:>10}")).collect();
        println!("{:<34}{head}", "operation");
        for (row, figure) in &self.operations {
            self.print_row(row, figure);
        }
        let first = &self.first_instruction;
        println!(
            "before the first guest instruction: {} and {} copying and verifying (Xen 57 M, Bao 800 M) {}",
            million(first.value),
            million(self.copying),
            first.verdict(),
        );
        let linux = &self.linux_permille;
        let percent = linux.value.map_or("-".to_owned(), |value| format!("{:+.2} %", value / 10.0));
        println!(
            "Linux, first message to /init, over the native {}: {percent} (Bao +0.05 %, Xen +0.7 %, KVM +24 %) {}",
            million(linux.native),
            linux.verdict(),
        );
    }

    fn print_row(&self, row: &Row, figure: &Figure) {
        let known = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
        let ours = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        // The peers' figures are those of a cortex-a57; only KVM was measured on the other model too.
        let is_base = self.cpu == CpuModel::CortexA57;
        let peer = |value: Option<u32>| known(value.filter(|_| is_base));
        let cells = [
            ours(figure.native),
            known(Some(if is_base { row.kvm } else { row.kvm_vhe })),
            peer(Some(row.xen)),
            peer(row.jailhouse),
            peer(row.bao),
            peer(Some(row.bar)),
            ours(figure.value),
        ];
        let cells: String = cells.iter().map(|cell| format!("{cell:>10}")).collect();
        println!("{:<34}{cells} {}", row.title, figure.verdict());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Clock;

    #[test]
    fn the_guests_lines_are_read() {
        let text = "TAP\r\nbench hypercall 62.3\r\nbench-max hypercall 80\r\nbench ipi 401.0\r\n";
        assert_eq!(average(text, "hypercall"), Some(62.3));
        assert_eq!(average(text, "ipi"), Some(401.0));
        assert_eq!(average(text, "self-sgi"), None);
    }

    #[test]
    fn copying_is_not_counted_as_booting() {
        let log = "x\nboot: first guest instruction after 9000000 ns (6000000 ns copying and verifying)\n";
        assert_eq!(first_instruction(log), Some((3_000_000.0, 6_000_000.0)));
        assert_eq!(first_instruction("boot: no\n"), None);
    }

    #[test]
    fn linux_is_timed_from_its_first_message_to_init() {
        let text =
            "[    0.000000] Booting Linux\r\n[    0.5] x\r\n[    1.250000] Run /init as init process\r\n";
        assert_eq!(linux_nanoseconds(text), Some(1.25e9));
        assert_eq!(linux_nanoseconds("[    0.0] Booting\n"), None);
    }

    #[test]
    fn a_figure_must_be_there_and_below_its_bar() {
        let verdict = |value, bar| Figure { value, native: None, bar }.verdict();
        assert_eq!(verdict(Some(99.9), Some(100.0)), "ok");
        assert_eq!(verdict(Some(100.0), Some(100.0)), "MISSED");
        assert_eq!(verdict(None, None), "MISSING");
        assert_eq!(verdict(Some(1.0), None), "");
    }

    #[test]
    fn both_dialogues_are_valid_scenarios() {
        assert_eq!(file::parse(GUEST_STEPS).unwrap().clock, Clock::Instructions);
        assert_eq!(file::parse(LINUX_STEPS).unwrap().steps.len(), 3);
    }
}
