//! The back end that the core sees: what both vendors share, and the promise of the seam.

use crate::board;
use crate::cpuid::{self, Facts, Live, Native};
use crate::exits;
use crate::hw::host_apic::{HostApic, vector};
use crate::hw::{self, read_tsc};
use crate::insn;
use crate::msr::{Direction, Msrs};
use crate::report;
use crate::vcpu::{Keeps, Vcpu, Waiting, todo};
use crate::vendor::{Control, Event, Register, Vendor};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bulkhead::arch::{
    Arch, Board, CpuId, CpuMain, Entry, Exit, Files, RamRange, StartError, Ticks, Unsupported, VcpuId,
};
use bulkhead::config;
use bulkhead::memory::Hpa;
use bulkhead::memory::table::Stage2;
use bulkhead::vcpu::Cpu;
use bulkhead::vm::Vm;
use bulkhead_firmware_stubs::seeds::Seeds;
use bulkhead_vdev::lapic::{Features, LocalApic, Owner, Page, Setup};
use bulkhead_vdev::pc_irqs::PcIrqs;
use bulkhead_vdev::{IrqLines, VcpuSet, pc};
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering};

/// The page that stands for the local APICs is made of host memory that the guest's video memory would have.
const APIC_PAGE: RamRange = RamRange { at: pc::LAPIC, offset: pc::LOW_RAM_END.0, bytes: 0x1000 };

/// No moment.
pub(crate) const NEVER: u64 = u64::MAX;

/// One physical CPU with its vendor's extension switched on.
pub struct X86<V: Vendor> {
    pub(crate) vendor: V,
    pub(crate) host: HostApic,
    pub(crate) platform: Platform<V>,
    keeps: Keeps,
    /// When the core wants this CPU back.
    core_deadline: Cell<u64>,
    /// When the loaded guest's own timer is due.
    guest_deadline: Cell<u64>,
    /// What the host's timer is set to.
    armed: Cell<u64>,
    /// The VM that had the CPU last.
    last_vm: Cell<Option<usize>>,
    /// It is the CPU it was made on.
    not_send: PhantomData<*const ()>,
}

/// What the program that links this library does for it, and found out for it.
pub struct Platform<V: Vendor> {
    /// Starts CPU number `.0`, which calls the main function.
    pub start_cpu: fn(usize, &'static CpuMain<X86<V>>) -> Result<(), Unsupported>,
    /// Switches the machine off.
    pub power_off: fn() -> !,
    /// The numbers of all CPUs' local APICs.
    pub apic_ids: &'static [u32],
    /// Ticks of the time stamp counter in a second.
    pub ticks_per_second: u64,
    /// Different each time the machine starts; empty if it has no source.
    pub entropy: &'static [u8],
}

/// One VM's interrupt controllers, but for the local APICs, which are their vCPUs' own.
pub struct Irqs {
    /// IOAPIC, 8259s, and the mailboxes of the local APICs.
    pub wires: PcIrqs,
    /// Counts resets of the VM: a vCPU that has not seen the last one is as after power-on when it starts.
    pub resets: Arc<AtomicU32>,
}

impl IrqLines for Irqs {
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet {
        self.wires.set_line(line, level)
    }

    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.wires.reset();
    }
}

impl<V: Vendor> X86<V> {
    /// The CPU that executes this. Allocates: boot only.
    #[must_use]
    pub fn new(mut vendor: V, host: HostApic, platform: Platform<V>) -> Self {
        insn::warm_up();
        let mut keeps = Keeps::of_this_cpu();
        // What one guest may reach, all may: the table does not depend on the guest.
        let table = new_table(&facts(&vendor, &platform, &keeps, None));
        for (number, direction) in Msrs::new(&table).native() {
            keeps.speculation |= number == hw::GuestMsr::SpecCtrl as u32 && direction == Direction::Write;
            keeps.barrier |= number == hw::GuestMsr::PredCmd as u32;
            let is_kept = number == hw::GuestMsr::SpecCtrl as u32 && keeps.remedies.keep_ibrs;
            if !is_kept {
                vendor.permit(number, direction);
            }
        }
        if keeps.speculation {
            hw::write_guest_msr(hw::GuestMsr::SpecCtrl, keeps.remedies.kept_controls());
        }
        Self {
            vendor,
            host,
            platform,
            keeps,
            core_deadline: Cell::new(NEVER),
            guest_deadline: Cell::new(NEVER),
            armed: Cell::new(NEVER),
            last_vm: Cell::new(None),
            not_send: PhantomData,
        }
    }

    // Time

    /// Sets the host's timer to what is due first.
    #[inline]
    fn arm(&self) {
        let at = self.core_deadline.get().min(self.guest_deadline.get());
        if at != self.armed.get() {
            self.armed.set(at);
            self.host.set_deadline((at != NEVER).then_some(at));
        }
    }

    /// The loaded guest's own timer is due then.
    #[inline]
    pub(crate) fn set_guest_deadline(&self, at: u64) {
        if at != self.guest_deadline.get() {
            self.guest_deadline.set(at);
            self.arm();
        }
    }

    /// The host's timer came: the guest's turn goes on unless it was for the core.
    fn timer(&self, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        self.armed.set(NEVER);
        let now = read_tsc();
        if self.guest_deadline.get() <= now {
            vcpu.todo |= todo::LOOK;
        }
        if self.core_deadline.get() <= now {
            return Some(Exit::Preempted);
        }
        if vcpu.todo & todo::LOOK == 0 {
            // It came early.
            self.arm();
        }
        None
    }

    /// Another VM has had the CPU: what it left behind must not lead the next one astray, nor be read by it.
    fn forget_last_vm(&self) {
        if self.keeps.barrier {
            hw::write_guest_msr(hw::GuestMsr::PredCmd, 1);
        }
        if self.keeps.remedies.flush_l1 {
            hw::write_guest_msr(hw::GuestMsr::FlushCmd, 1);
        }
    }

    // Interrupts of the host's

    /// A physical interrupt ended the guest's turn.
    #[inline]
    pub(crate) fn interrupt(&self, acknowledged: Option<u8>, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        let taken = match acknowledged {
            Some(vector) => {
                self.host.acknowledge(vector);
                Some(vector)
            }
            None => self.host.take_interrupt(),
        };
        self.taken(taken?, vcpu)
    }

    /// What a physical interrupt is for, which is acknowledged.
    #[inline]
    fn taken(&self, vector: u8, vcpu: &mut Vcpu<V>) -> Option<Exit> {
        match vector {
            vector::TIMER => self.timer(vcpu),
            // Heard: `run` looks before it enters again.
            vector::NUDGE | vector::SPURIOUS => None,
            _ => Some(Exit::Preempted),
        }
    }

    /// What has to be done before the guest is entered again.
    #[inline(never)]
    fn before_entry(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if vcpu.todo & todo::RESUME != 0 {
            vcpu.todo &= !todo::RESUME;
            if let Some(exit) = self.resume(vcpu, vm) {
                return Some(exit);
            }
        }
        let is_woken = self.deliver(vcpu, vm);
        if vcpu.todo & todo::HALTED == 0 {
            return None;
        }
        if !is_woken && let Some(exit) = self.wait(vcpu, vm) {
            return Some(exit);
        }
        vcpu.todo &= !todo::HALTED;
        None
    }

    /// The guest has executed HLT, and has nothing to take. Alone on its CPU it waits here, as if it ran: whoever has something
    /// for it sends an interrupt. `None`: it has something to take.
    fn wait(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        if vcpu.is_shared {
            return Some(Exit::Idle);
        }
        // Each turn takes an interrupt, and those for the core end it.
        loop {
            // A vendor's timer counts only while the guest runs.
            self.set_guest_deadline(vcpu.apic.deadline().unwrap_or(NEVER));
            if let Some(vector) = self.host.wait_for_interrupt()
                && let Some(exit) = self.taken(vector, vcpu)
            {
                return Some(exit);
            }
            if (vm.take_attention(vcpu.id) || vcpu.todo & todo::LOOK != 0) && self.deliver(vcpu, vm) {
                return None;
            }
        }
    }

    fn send(&self, cpu: CpuId, vector: u8) {
        if let Some(target) = self.platform.apic_ids.get(cpu.0 as usize) {
            self.host.send(*target, vector);
        }
    }
}

/// What the CPU that executes this says of itself.
fn host_leaf(leaf: u32, subleaf: u32) -> cpuid::Leaf {
    let hw::Leaf { eax, ebx, ecx, edx } = hw::cpuid(leaf, subleaf);
    cpuid::Leaf { eax, ebx, ecx, edx }
}

/// What a guest reads with CPUID. Apart, as the next one: a stack has no room for several such things at once.
#[inline(never)]
fn new_table(facts: &Facts) -> Box<cpuid::Table> {
    Box::new(cpuid::Table::new(&host_leaf, facts))
}

/// The registers of a local APIC.
#[inline(never)]
fn new_page() -> &'static Page {
    Box::leak(Box::default())
}

/// What settles a vCPU's CPUID; of one VM or another if there is none.
fn facts<V: Vendor>(
    vendor: &V,
    platform: &Platform<V>,
    keeps: &Keeps,
    of: Option<(&config::Vm, VcpuId)>,
) -> Facts {
    let (vcpus, vcpu, hypervisor_leaf) =
        of.map_or((1, 0, false), |(vm, id)| (vm.vcpus, u32::try_from(id.0).unwrap_or(0), vm.hypervisor_leaf));
    Facts {
        vcpus,
        vcpu,
        hypervisor_leaf,
        tsc_hz: platform.ticks_per_second,
        xcr0: keeps.xcr0,
        address_bits: u8::try_from(vendor.address_bits()).unwrap_or(36),
        native: Native {
            tsc_aux: keeps.tsc_aux && vendor.has_rdtscp(),
            invpcid: vendor.has_invpcid(),
            xsaves: false,
            user_wait: false,
            speculation: true,
        },
    }
}

// SAFETY: a vendor's control block is made with the `Stage2` that `vcpu` is given, and runs its guest in no other; `enter` comes
// back with the host's registers, tables and stack as they were; which instructions, ports and MSRs a guest has without an
// exit is settled in `hw` and by `Vendor::permit`, which is given registers of the guest's own only.
#[expect(unsafe_code, reason = "the promise of the seam, kept by `hw`")]
unsafe impl<V: Vendor> Arch for X86<V> {
    type Format = V::Format;
    type Vcpu = Vcpu<V>;
    type Irqs = Irqs;

    const ARCHITECTURE: config::Architecture = config::Architecture::X86_64;
    const HAS_PORTS: bool = true;

    const HIDDEN: Option<RamRange> = if V::NEEDS_APIC_PAGE { Some(APIC_PAGE) } else { None };

    fn ram(bytes: u64) -> Vec<RamRange> {
        board::ram(bytes)
    }

    fn start_cpu(&self, cpu: CpuId, main: &'static CpuMain<Self>) -> Result<(), Unsupported> {
        (self.platform.start_cpu)(cpu.0 as usize, main)
    }

    fn board(&self, index: usize, vm: &config::Vm, files: Files) -> Result<Board, String> {
        board::board(vm, files, Seeds::derive(self.platform.entropy, index))
    }

    #[inline(never)]
    fn irqs(&self, vm: &config::Vm) -> Irqs {
        Irqs { wires: PcIrqs::new(vm.vcpus as usize), resets: Arc::new(AtomicU32::new(1)) }
    }

    fn address_bits(&self) -> u32 {
        self.vendor.address_bits()
    }

    fn largest_leaf(&self) -> u32 {
        self.vendor.largest_leaf()
    }

    #[inline(never)]
    fn vcpu(&self, vm: &Vm<Self>, id: VcpuId, shared: bool) -> Vcpu<V> {
        let facts = facts(&self.vendor, &self.platform, &self.keeps, Some((&vm.config, id)));
        let table = new_table(&facts);
        let page = new_page();
        let owner = if self.vendor.delivers_interrupts() { Owner::Hardware } else { Owner::Software };
        let setup = Setup {
            features: apic_features(&table),
            owner,
            ticks_per_second: self.platform.ticks_per_second,
        };
        let (apics, resets) = {
            let irqs = vm.irqs(self);
            (irqs.wires.apics().clone(), irqs.resets.clone())
        };
        let apic = LocalApic::new(id.0, page, apics, setup);
        let control = self.vendor.control(vm.index, id, &vm.space, page);
        Vcpu::new(id, shared, control, apic, table, self.keeps, resets)
    }

    #[inline(never)]
    fn reset(&self, vcpu: &mut Vcpu<V>, entry: Entry) {
        let resets = vcpu.resets.load(Ordering::Relaxed);
        if vcpu.seen_resets == resets {
            vcpu.apic.init();
        } else {
            vcpu.seen_resets = resets;
            vcpu.apic.reset();
            vcpu.msrs.reset();
            vcpu.control.set(Register::TscOffset, 0);
            vcpu.apic.set_tsc_offset(0, self.now().0);
        }
        if entry.state != board::StartState::Real as u32 {
            vcpu.apic.set_up_as_firmware_does();
        }
        self.vendor.reset(&mut vcpu.control);
        vcpu.reset(entry);
        self.apic_changed(vcpu);
    }

    fn load(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) {
        if self.last_vm.replace(Some(vm.index)) != Some(vm.index) {
            self.forget_last_vm();
        }
        self.vendor.load(&mut vcpu.control);
        vcpu.load();
    }

    fn unload(&self, vcpu: &mut Vcpu<V>, _vm: &Vm<Self>) {
        vcpu.unload();
        self.vendor.unload(&mut vcpu.control);
        self.guest_deadline.set(NEVER);
    }

    fn abandon(&self, vcpu: &mut Vcpu<V>) {
        vcpu.abandon();
        self.vendor.unload(&mut vcpu.control);
        self.guest_deadline.set(NEVER);
    }

    #[inline]
    fn run(&self, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Exit {
        loop {
            if vm.take_attention(vcpu.id) {
                vcpu.todo |= todo::LOOK;
            }
            if vcpu.control.interrupted().is_some() {
                vcpu.todo |= todo::LOOK;
            }
            if vcpu.todo != 0
                && let Some(exit) = self.before_entry(vcpu, vm)
            {
                return exit;
            }
            let event = self.vendor.enter(&mut vcpu.control, &mut vcpu.registers);
            if let Some(exit) = self.serve(event, vcpu, vm) {
                return exit;
            }
        }
    }

    #[inline]
    fn complete(&self, vcpu: &mut Vcpu<V>, value: u64) {
        match vcpu.waiting {
            Waiting::Port(access, length) => self.complete_port(vcpu, access, length, value),
            Waiting::Device(plan, _) => {
                vcpu.waiting = Waiting::Answered(plan, value);
                vcpu.todo |= todo::RESUME;
            }
            Waiting::Nothing | Waiting::Answered(..) => {}
        }
    }

    /// Where nothing is, a PC reads all ones.
    fn refuse(&self, vcpu: &mut Vcpu<V>) {
        let width = match vcpu.waiting {
            Waiting::Port(access, _) => access.width(),
            Waiting::Device(_, width) => width,
            Waiting::Nothing | Waiting::Answered(..) => return,
        };
        self.complete(vcpu, width.mask());
    }

    fn reply(&self, vcpu: &mut Vcpu<V>, result: u64) {
        vcpu.registers.r[hw::Registers::RAX] = result;
    }

    /// Start-up messages are not answered.
    fn started(&self, _vcpu: &mut Vcpu<V>, _result: Result<(), StartError>) {}

    fn alarm(&self, vcpu: &Vcpu<V>) -> Option<Ticks> {
        vcpu.apic.deadline().map(Ticks)
    }

    /// Every exception that can come for ever makes an exit, and is found out there.
    fn is_stuck(&self, _vcpu: &Vcpu<V>) -> bool {
        false
    }

    fn invalidate(&self, vm: usize, space: &Stage2<V::Format>) {
        self.vendor.invalidate(vm, space);
    }

    /// Caches are coherent, whether a guest has them on or off.
    fn publish(&self, _at: Hpa, _bytes: usize) {}

    fn kick(&self, cpu: CpuId) {
        self.send(cpu, vector::KICK);
    }

    fn nudge(&self, cpu: CpuId) {
        self.send(cpu, vector::NUDGE);
    }

    #[inline]
    fn now(&self) -> Ticks {
        Ticks(read_tsc())
    }

    fn ticks_per_second(&self) -> u64 {
        self.platform.ticks_per_second
    }

    fn wake_at(&self, at: Option<Ticks>) {
        self.core_deadline.set(at.map_or(NEVER, |at| at.0));
        self.arm();
    }

    fn idle(&self) {
        if self.host.wait_for_interrupt() == Some(vector::TIMER) {
            self.armed.set(NEVER);
        }
    }

    fn describe(&self, vcpu: &Vcpu<V>, out: &mut dyn fmt::Write) -> fmt::Result {
        report::describe(vcpu, out)
    }

    fn keep_running(cpu: &'static mut Cpu<Self>) -> ! {
        hw::keep_running(cpu)
    }

    fn give_up(&self) -> ! {
        hw::give_up()
    }

    fn power_off(&self) -> ! {
        (self.platform.power_off)()
    }
}

/// What a guest was told that its local APIC can do.
fn apic_features(table: &cpuid::Table) -> Features {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    let offered = table.read(1, 0, &Live::default()).ecx;
    let mut features = Features::EOI_SUPPRESSION;
    features.set(Features::X2APIC, offered & X2APIC != 0);
    features.set(Features::TSC_DEADLINE, offered & TSC_DEADLINE != 0);
    features
}

/// Used by the loop above, so that it stands in one place what an event is.
impl<V: Vendor> X86<V> {
    /// Serves what ended the guest's turn. `None`: the guest goes on.
    #[inline(always)]
    fn serve(&self, event: Event, vcpu: &mut Vcpu<V>, vm: &Vm<Self>) -> Option<Exit> {
        exits::serve(self, event, vcpu, vm)
    }
}
