//! The same for a PC: one column for SVM, whose emulator counts instructions by its clock, and one for VMX, whose emulator
//! counts them as ticks of the time stamp counter.

use anyhow::bail;
use serde_json::{Value, json};

use super::figures::{PC_FIRST_INSTRUCTION_BAR, PC_LINUX_BAR_PERMILLE, PC_ROWS, PcPeers, PcRow};
use super::{Figure, average, first_instruction, guest_text, million, pc_linux};
use crate::boot::Under;
use crate::frames::LOG;
use crate::machine::{Clock, Machine, bochs};
use crate::progress::Step;
use crate::scenario::{self, file, transcript::Transcript};
use crate::workspace;

const GUEST_IMAGE: &str = "tests/images/guest-bench-x86";
const LINUX_IMAGE: &str = "tests/images/linux-bench-x86";
const LINUX_ON_BOCHS: &str = "tests/images/linux-bench-bochs";
/// How long Linux waits in either to calibrate the local APIC timer: a tenth of a second.
const LINUX_WAITS: f64 = 100e6;

/// Everything measured on one machine.
struct Column {
    machine: Machine,
    operations: Vec<(&'static PcRow, Figure)>,
    first: Figure,
    copying: Option<f64>,
    linux_permille: Figure,
}

/// Measures on a PC and prints; an error if a bar is missed.
pub(super) fn run(machine: Machine, as_json: bool) -> anyhow::Result<()> {
    if machine == Machine::QemuQ35Kvm {
        bail!("machine {} cannot count instructions: choose qemu-q35-svm or bochs-vmx", machine.name());
    }
    let column = measure(machine)?;
    if as_json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "unit": "instructions", "columns": [column.json()] }))?
        );
    } else {
        column.print();
    }
    match column.missed() {
        0 => Ok(()),
        missed => bail!("{missed} figures are missing or above their bar"),
    }
}

fn peers(machine: Machine, row: &PcRow) -> PcPeers {
    if machine == Machine::BochsVmx { row.vmx } else { row.svm }
}

fn measure(machine: Machine) -> anyhow::Result<Column> {
    let guest = [Under::Bulkhead, Under::Nothing].map(|under| play(machine, GUEST_IMAGE, None, under));
    let [under, native] = guest;
    let (under, native) = (under?, native?);
    let operations = PC_ROWS.iter().filter_map(|row| {
        let bar = peers(machine, row).bar?;
        let (value, native) =
            (average(&guest_text(&under), row.name), average(&guest_text(&native), row.name));
        Some((row, Figure { value, native, bar: Some(f64::from(bar)) }))
    });
    let operations = operations.collect();
    let image = if machine == Machine::BochsVmx { LINUX_ON_BOCHS } else { LINUX_IMAGE };
    let linux = [Under::Bulkhead, Under::Nothing].map(|under| play(machine, image, Some("~ # "), under));
    let [under, native] = linux;
    let (under, native) = (under?, native?);
    // Clocks show nanoseconds; what is told are instructions.
    let rate = if machine == Machine::BochsVmx { bochs::INSTRUCTIONS_PER_SECOND / 1e9 } else { 1.0 };
    let first = first_instruction(&under.text(LOG)).map(|(own, copying)| (own * rate, copying * rate));
    let time = |run: &Transcript| Some((pc_linux::nanoseconds(&guest_text(run))? - LINUX_WAITS) * rate);
    let times = (time(&under), time(&native));
    let permille = match times {
        (Some(under), Some(native)) if native > 0.0 => Some((under - native) / native * 1000.0),
        _ => None,
    };
    Ok(Column {
        machine,
        operations,
        first: Figure { value: first.map(|(own, _)| own), native: None, bar: Some(PC_FIRST_INSTRUCTION_BAR) },
        copying: first.map(|(_, copying)| copying),
        linux_permille: Figure { value: permille, native: times.1, bar: Some(PC_LINUX_BAR_PERMILLE) },
    })
}

/// Boots until the guest powers off by itself, or, if there is a shell to wait for, until it has told the time and powers off.
fn play(machine: Machine, image: &str, shell: Option<&str>, under: Under) -> anyhow::Result<Transcript> {
    let _step = Step::start(format!("counting instructions of {image} on {}, {under:?}", machine.name()));
    let mut text = "image = '.'\nlimit = '900 s'\n".to_owned();
    if let Some(shell) = shell {
        let (question, answer) = (pc_linux::QUESTION, pc_linux::ANSWER_ENDS);
        text.push_str(&format!("[[step]]\nexpect = '{shell}'\n[[step]]\nsend = \"{question}\"\n"));
        text.push_str(&format!("[[step]]\nexpect = '{answer}'\n[[step]]\nsend = \"poweroff\\n\"\n"));
    }
    text.push_str("[end]\nmachine = 'off'");
    let mut scenario = file::parse(&text)?;
    scenario.image = workspace::root().join(image);
    (scenario.machine, scenario.under) = (Some(machine), under);
    if shell.is_none() {
        scenario.cpus = Some(2);
    }
    if machine != Machine::BochsVmx {
        scenario.clock = Clock::Instructions;
    } else if under == Under::Bulkhead {
        // As much as the system needs: Bochs holds all of it.
        scenario.ram_bytes = Some(512 << 20);
        scenario.cpus = Some(if shell.is_some() { 1 } else { 2 });
    }
    let played = scenario::play(&scenario, &mut |_| {})?;
    match played.failure {
        None => Ok(played.transcript),
        Some(failure) => {
            bail!("{image} on {} ({under:?}): {failure}\n{}", machine.name(), played.transcript.tail())
        }
    }
}

impl Column {
    fn missed(&self) -> usize {
        let figures =
            self.operations.iter().map(|(_, figure)| figure).chain([&self.first, &self.linux_permille]);
        figures.filter(|figure| figure.is_missed()).count()
    }

    fn json(&self) -> Value {
        let operations: Vec<Value> =
            self.operations.iter().map(|(row, figure)| figure.json(row.name)).collect();
        json!({
            "machine": self.machine.name(),
            "operations": operations,
            "first-guest-instruction": self.first.json("first-guest-instruction"),
            "copying-and-verifying": self.copying,
            "linux-to-init-permille-over-native": self.linux_permille.json("linux-to-init"),
        })
    }

    fn print(&self) {
        println!("\n{}: instructions for each operation", self.machine.name());
        let head = ["native", "KVM", "Xen", "below", "Bulkhead"];
        let head: String = head.iter().map(|title| format!("{title:>10}")).collect();
        println!("{:<44}{head}", "operation");
        for (row, figure) in &self.operations {
            let known = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
            let ours = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            let peers = peers(self.machine, row);
            let cells = [
                ours(figure.native),
                known(peers.kvm),
                known(peers.xen),
                known(peers.bar),
                ours(figure.value),
            ];
            let cells: String = cells.iter().map(|cell| format!("{cell:>10}")).collect();
            println!("{:<44}{cells} {}", row.title, figure.verdict());
        }
        println!(
            "before the first guest instruction: {} and {} copying and verifying {}",
            million(self.first.value),
            million(self.copying),
            self.first.verdict(),
        );
        let linux = &self.linux_permille;
        let percent = linux.value.map_or("-".to_owned(), |value| format!("{:+.2} %", value / 10.0));
        println!(
            "Linux, first message to /init, over the native {}: {percent} {}",
            million(linux.native),
            linux.verdict(),
        );
    }
}
