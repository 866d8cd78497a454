//! A fake machine behind the seam: it drives the real core on the host, one decision at a time.
//!
//! [`Fake`] is one physical CPU and checks the core's half of the contract at each call: a vCPU runs only while it is
//! loaded, on its own CPU, after each exit was answered, and never after it was switched off. What a guest does is a
//! closure. Time stands still unless a test or a guest moves it, and nothing ever waits: a CPU that would sleep is
//! marked as asleep, and [`rig::Rig`] steps it again only when real hardware would have woken it.
#![allow(dead_code, reason = "each test program uses its own part of this")]

pub(crate) mod guests;
pub(crate) mod machine;
pub(crate) mod rig;

use bulkhead::arch::{
    Arch, Board, CpuId, CpuMain, Entry, Exit, Files, Place, RamRange, Segment, StartError, Stop, Ticks,
    Unsupported, VcpuId, Window, Wired,
};
use bulkhead::config::{self, Architecture, KernelFormat};
use bulkhead::memory::table::{Format, Perm, Slot, Stage2};
use bulkhead::memory::{Hpa, PAGE};
use bulkhead::vcpu::Cpu;
use bulkhead::vm::{Phase, Vm};
use bulkhead_vdev::pl011::Pl011;
use bulkhead_vdev::pl031::Pl031;
use bulkhead_vdev::{Access, Device, Gpa, IrqLines, Ports, VcpuSet, Wish, virt};
use guests::{Act, Guest, Turn};
use machine::{IN_DEVICE, Machine, PoweredOff, Reply};
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// How often the fake counter ticks: not a divisor of a nanosecond count, as on real machines.
pub(crate) const TICKS_PER_SECOND: u64 = 24_000_000;
/// The test device [`Latch`], and its wire.
pub(crate) const LATCH: Gpa = Gpa(0x0a00_0000);
pub(crate) const LATCH_LINE: u32 = 48;
/// The latch's wire by a port; its alarm is 0x100 ports higher.
pub(crate) const LATCH_PORT: u16 = 0x300;
/// The panic of the test device.
pub(crate) const BREAKS: &str = "the latch breaks";
/// How the panics begin that a guest may ask for.
const PROVOKED: &str = "the guest asked for a panic";
/// A kernel that starts so is refused by the board.
pub(crate) const REFUSED: &[u8] = b"refused";
/// A kernel that starts so gets two devices in one place.
pub(crate) const OVERLAPPING: &[u8] = b"overlapping";
/// A kernel that starts so is copied behind the end of its RAM.
pub(crate) const TOO_HIGH: &[u8] = b"too high";

/// A format as plain as one can be: bit 0 valid, bit 1 leaf, bit 2 write.
pub(crate) struct Plain;

impl Format for Plain {
    const LARGEST_LEAF: u32 = 2;

    fn root(bits: u32) -> (u32, usize) {
        (2, 1 << bits.saturating_sub(39))
    }

    fn table(next: Hpa) -> u64 {
        next.0 | 1
    }

    fn leaf(page: Hpa, _level: u32, perm: Perm) -> u64 {
        page.0 | 3 | u64::from(perm.write) << 2
    }

    fn decode(entry: u64, _level: u32) -> Slot {
        match entry & 3 {
            1 => Slot::Table(Hpa(entry & !(PAGE - 1))),
            3 => Slot::Leaf(Hpa(entry & !(PAGE - 1))),
            _ => Slot::Empty,
        }
    }
}

/// An interrupt controller with one pending bit for each wire, all of them for one vCPU.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) high: Vec<u32>,
    pub(crate) target: usize,
}

impl IrqLines for Lines {
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet {
        self.high.retain(|other| *other != line);
        if !level {
            return VcpuSet::EMPTY;
        }
        self.high.push(line);
        VcpuSet::only(self.target)
    }

    fn reset(&mut self) {
        self.high.clear();
    }
}

/// A device whose registers are its wire (offset 0), its wish (offset 4: 1 off, 2 reset), its alarm in nanoseconds
/// (offset 8), a panic (offset 12), and the nanoseconds between alarms without end (offset 16).
#[derive(Default)]
struct Latch {
    level: u64,
    alarm: Option<u64>,
    breaks: bool,
    period_ns: u64,
}

impl Device for Latch {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        match (offset, access) {
            (0, Access::Write(_, value)) => self.level = value,
            (4, Access::Write(_, value)) => {
                ports.wish = Some(if value == 1 { Wish::PowerOff } else { Wish::Reset });
            }
            (8, Access::Write(_, value)) => self.alarm = Some(value),
            (12, Access::Write(_, 1)) => panic!("{BREAKS}"),
            (12, Access::Write(..)) => (self.breaks, self.alarm) = (true, Some(ports.clock.now_ns() + 1_000)),
            (16, Access::Write(_, value)) => {
                (self.period_ns, self.alarm) = (value, Some(ports.clock.now_ns() + value));
            }
            _ => {}
        }
        self.level
    }

    fn irq(&self) -> bool {
        self.level != 0
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        if self.alarm.is_some_and(|alarm| alarm <= ports.clock.now_ns()) {
            assert!(!self.breaks, "{BREAKS}");
            self.alarm = (self.period_ns > 0).then(|| ports.clock.now_ns() + self.period_ns);
            self.level = 1;
        }
    }

    fn alarm(&self) -> Option<u64> {
        self.alarm
    }

    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What is unwound with when a CPU leaves what it does.
pub(crate) struct GaveUp;

/// What a back end does after a panic of the core's; a test's own goes on.
pub(crate) fn contain(cpu: &mut Cpu<Fake>, reason: Box<dyn Any + Send>) {
    IN_DEVICE.set(false);
    let text = reason.downcast_ref::<String>().map(String::as_str);
    let why = text.or_else(|| reason.downcast_ref::<&str>().copied());
    let is_meant = why.is_some_and(|why| why == BREAKS || why.starts_with(PROVOKED));
    if !is_meant && !reason.is::<GaveUp>() {
        resume_unwind(reason);
    }
    if !cpu.recover(why) {
        cpu.arch().power_off();
    }
}

/// A device at whose work nobody is let in.
struct Undisturbed<D>(D);

impl<D: Device> Device for Undisturbed<D> {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        IN_DEVICE.set(true);
        let value = self.0.access(offset, access, ports);
        IN_DEVICE.set(false);
        value
    }

    fn irq(&self) -> bool {
        self.0.irq()
    }

    fn notify(&mut self, ports: &mut Ports<'_>) {
        IN_DEVICE.set(true);
        self.0.notify(ports);
        IN_DEVICE.set(false);
    }

    fn alarm(&self) -> Option<u64> {
        self.0.alarm()
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

/// One vCPU's registers: its guest, and what the core has done with it.
pub(crate) struct FakeVcpu {
    vm: usize,
    id: VcpuId,
    home: CpuId,
    guest: Guest,
    entry: Option<Entry>,
    boots: u32,
    loaded: bool,
    owes: Owes,
    alarm: Option<Ticks>,
}

/// The answer that the core still has to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owes {
    Nothing,
    Access,
    Hypercall,
    Start,
    /// It has stopped: a new entry.
    Reset,
}

impl FakeVcpu {
    fn who(&self) -> (usize, usize) {
        (self.vm, self.id.0)
    }
}

/// One physical CPU of a [`Machine`].
pub(crate) struct Fake {
    pub(crate) machine: &'static Machine,
    pub(crate) cpu: CpuId,
}

impl Fake {
    fn answer(&self, vcpu: &mut FakeVcpu, owed: Owes, reply: Reply) {
        self.machine.called(self.cpu);
        assert_eq!(vcpu.owes, owed, "an exit got another exit's answer");
        assert!(vcpu.loaded);
        vcpu.owes = Owes::Nothing;
        self.machine.with(|state| state.guest(vcpu.who()).replies.push(reply));
    }

    /// What stands between a guest and its next instruction.
    fn is_interrupted(&self) -> bool {
        self.machine.with(|state| {
            state.now = state.now.saturating_add(state.ticks_per_exit);
            let now = state.now;
            if state.off && self.machine.threads {
                resume_unwind(Box::new(PoweredOff));
            }
            let cpu = state.cpu(self.cpu);
            let due = cpu.deadline.is_some_and(|at| at.0 <= now);
            std::mem::take(&mut cpu.kicked) | due
        })
    }

    /// The guest computes for so long, or until this CPU is interrupted.
    fn work(&self, who: (usize, usize), ticks: u64) {
        self.machine.with(|state| {
            let end = state.now.saturating_add(ticks);
            let end = state.cpu(self.cpu).deadline.map_or(end, |at| end.min(at.0.max(state.now)));
            state.guest(who).worked += end - state.now;
            state.now = end;
        });
    }
}

#[expect(unsafe_code, reason = "the fake's guests are closures that are never lent memory")]
// SAFETY: no guest reaches any memory, and `run` changes nothing of the host's.
unsafe impl Arch for Fake {
    type Format = Plain;
    type Vcpu = FakeVcpu;
    type Irqs = Lines;

    const ARCHITECTURE: Architecture = Architecture::Aarch64;

    fn ram(bytes: u64) -> Vec<RamRange> {
        vec![RamRange { at: virt::RAM, offset: 0, bytes }]
    }

    fn start_cpu(&self, cpu: CpuId, main: &'static CpuMain<Self>) -> Result<(), Unsupported> {
        self.machine.start_cpu(cpu, main)
    }

    fn board(&self, _index: usize, vm: &config::Vm, files: Files) -> Result<Board, String> {
        let KernelFormat::Flat { load, entry } = vm.kernel.format else {
            return Err("it is not flat".into());
        };
        if files.kernel.starts_with(REFUSED) {
            return Err("the board refuses it".into());
        }
        let wired = |device: Box<dyn Device>, line| Wired { device, line: Some(line) };
        let devices = vec![
            wired(Box::new(Undisturbed(Pl011::new())), virt::UART_INTID),
            wired(Box::new(Undisturbed(Pl031::new())), virt::RTC_INTID),
            wired(Box::new(Undisturbed(Latch::default())), LATCH_LINE),
        ];
        let window = |base, device| Window { base: Place::Memory(base), len: 0x1000, device, offset: 0 };
        let mut windows = vec![window(virt::UART, 0), window(virt::RTC, 1), window(LATCH, 2)];
        // The latch by ports, as on machines that have them: wire, then alarm.
        windows.push(Window { base: Place::Port(LATCH_PORT), len: 8, device: 2, offset: 0 });
        windows.push(Window { base: Place::Port(LATCH_PORT + 0x100), len: 8, device: 2, offset: 8 });
        if files.kernel.starts_with(OVERLAPPING) {
            windows.push(window(Gpa(LATCH.0 + 0xfff), 2));
        }
        let end = virt::RAM.0 + vm.ram_bytes;
        let load = if files.kernel.starts_with(TOO_HIGH) { end } else { load };
        let mut segments = vec![Segment { to: Gpa(load), bytes: files.kernel }];
        if let Some(initrd) = files.initrd {
            segments.push(Segment { to: Gpa(end - initrd.len() as u64), bytes: initrd });
        }
        let entry = Entry { pc: Gpa(entry), arguments: [end, vm.ram_bytes, 0, 0], state: 0 };
        Ok(Board { devices, windows, segments, entry })
    }

    fn irqs(&self, _vm: &config::Vm) -> Lines {
        Lines::default()
    }

    fn address_bits(&self) -> u32 {
        self.machine.address_bits
    }

    fn vcpu(&self, vm: &Vm<Self>, id: VcpuId, shared: bool) -> FakeVcpu {
        let vm = vm.index;
        let guest = self.machine.with(|state| {
            let slot = state.guest((vm, id.0));
            slot.shared = shared;
            slot.program.take().unwrap_or_else(|| guests::waits())
        });
        let owes = Owes::Reset;
        FakeVcpu { vm, id, home: self.cpu, guest, entry: None, boots: 0, loaded: false, owes, alarm: None }
    }

    fn reset(&self, vcpu: &mut FakeVcpu, entry: Entry) {
        self.machine.called(self.cpu);
        assert!(!vcpu.loaded, "a loaded vCPU was reset");
        vcpu.entry = Some(entry);
        vcpu.boots += 1;
        vcpu.owes = Owes::Nothing;
        vcpu.alarm = None;
        self.machine.with(|state| state.guest(vcpu.who()).entries.push(entry));
    }

    fn load(&self, vcpu: &mut FakeVcpu, vm: &Vm<Self>) {
        self.machine.called(self.cpu);
        assert_eq!(vcpu.home, self.cpu, "a vCPU left its CPU");
        assert_eq!(vcpu.vm, vm.index);
        let before = self.machine.with(|state| state.cpu(self.cpu).loaded.replace(vcpu.who()));
        assert_eq!(before, None, "two vCPUs loaded at once");
        assert!(!std::mem::replace(&mut vcpu.loaded, true));
        // As on machines whose CPUs hold interrupts of the guest's: here another CPU may have the lock for ever.
        drop(vm.irqs(self));
    }

    fn unload(&self, vcpu: &mut FakeVcpu, vm: &Vm<Self>) {
        self.machine.called(self.cpu);
        assert_eq!(vcpu.vm, vm.index);
        let before = self.machine.with(|state| state.cpu(self.cpu).loaded.take());
        assert_eq!(before, Some(vcpu.who()), "another vCPU was loaded");
        assert!(std::mem::take(&mut vcpu.loaded));
    }

    fn abandon(&self, vcpu: &mut FakeVcpu) {
        let before = self.machine.with(|state| state.cpu(self.cpu).loaded.take());
        assert_eq!(before, Some(vcpu.who()), "another vCPU was loaded");
        vcpu.loaded = false;
    }

    fn run(&self, vcpu: &mut FakeVcpu, vm: &Vm<Self>) -> Exit {
        assert!(!matches!(vm.phase(), Phase::Loading | Phase::Ended), "a VM ran that is {:?}", vm.phase());
        self.machine.called(self.cpu);
        assert!(vcpu.loaded, "a vCPU ran that is not loaded");
        assert_eq!(vcpu.owes, Owes::Nothing, "a vCPU of VM {} ran on", vcpu.vm);
        let entry = vcpu.entry.expect("a vCPU runs after it was reset");
        loop {
            if self.is_interrupted() {
                return Exit::Preempted;
            }
            let attention = vm.take_attention(vcpu.id);
            let (id, boots, alarm, machine) = (vcpu.id, vcpu.boots, &mut vcpu.alarm, self.machine);
            let mut turn = Turn { vm, id, entry, boots, attention, alarm, machine };
            let exit = match (vcpu.guest)(&mut turn) {
                Act::Work(ticks) => {
                    self.work(vcpu.who(), ticks);
                    continue;
                }
                Act::Exit(exit) => exit,
            };
            self.machine.called(self.cpu);
            vcpu.owes = match exit {
                Exit::Io(..) => Owes::Access,
                Exit::Hypercall(..) => Owes::Hypercall,
                Exit::Start(..) => Owes::Start,
                Exit::Stopped(_) => Owes::Reset,
                Exit::SwitchOff(_) | Exit::Idle | Exit::Preempted => Owes::Nothing,
            };
            if let Exit::Stopped(Stop::Fault(_)) = exit {
                self.machine.with(|state| state.guest(vcpu.who()).faults += 1);
            }
            return exit;
        }
    }

    fn complete(&self, vcpu: &mut FakeVcpu, value: u64) {
        self.answer(vcpu, Owes::Access, Reply::Value(value));
    }

    fn refuse(&self, vcpu: &mut FakeVcpu) {
        self.answer(vcpu, Owes::Access, Reply::Refused);
    }

    fn reply(&self, vcpu: &mut FakeVcpu, result: u64) {
        self.answer(vcpu, Owes::Hypercall, Reply::Result(result));
    }

    fn started(&self, vcpu: &mut FakeVcpu, result: Result<(), StartError>) {
        self.answer(vcpu, Owes::Start, Reply::Started(result));
    }

    fn alarm(&self, vcpu: &FakeVcpu) -> Option<Ticks> {
        assert!(!vcpu.loaded, "the timers of a loaded vCPU are in the CPU");
        vcpu.alarm
    }

    fn is_stuck(&self, vcpu: &FakeVcpu) -> bool {
        assert!(vcpu.loaded, "only a loaded vCPU shows whether it is stuck");
        self.machine.with(|state| state.guest(vcpu.who()).stuck)
    }

    fn invalidate(&self, _vm: usize, _space: &Stage2<Plain>) {}

    fn publish(&self, _at: Hpa, bytes: usize) {
        self.machine.with(|state| {
            state.now += state.ticks_per_copied_page * (bytes as u64).div_ceil(PAGE);
        });
    }

    fn kick(&self, cpu: CpuId) {
        self.machine.with(|state| {
            state.cpu(cpu).kicked = true;
            state.cpu(cpu).kicks += 1;
        });
        self.machine.wake_sleepers();
    }

    fn nudge(&self, cpu: CpuId) {
        self.machine.with(|state| state.cpu(cpu).nudges += 1);
    }

    fn now(&self) -> Ticks {
        self.machine.called(self.cpu);
        Ticks(self.machine.with(|state| state.now))
    }

    fn ticks_per_second(&self) -> u64 {
        TICKS_PER_SECOND
    }

    fn wake_at(&self, at: Option<Ticks>) {
        self.machine.called(self.cpu);
        self.machine.with(|state| state.cpu(self.cpu).deadline = at);
    }

    fn idle(&self) {
        self.machine.called(self.cpu);
        self.machine.idle(self.cpu);
    }

    fn describe(&self, vcpu: &FakeVcpu, out: &mut dyn fmt::Write) -> fmt::Result {
        assert!(vcpu.loaded);
        writeln!(out, "entered at {:?}", vcpu.entry.map(|entry| entry.pc))
    }

    fn keep_running(cpu: &'static mut Cpu<Self>) -> ! {
        loop {
            let end = catch_unwind(AssertUnwindSafe(|| cpu.run()));
            let Err(reason) = end;
            contain(cpu, reason);
        }
    }

    fn give_up(&self) -> ! {
        resume_unwind(Box::new(GaveUp))
    }

    fn power_off(&self) -> ! {
        self.machine.power_off()
    }
}
