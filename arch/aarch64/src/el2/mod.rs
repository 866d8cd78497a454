//! EL2: the back end that the core sees.

mod context;
mod exits;
mod report;

use crate::board;
use crate::esr::Esr;
use crate::gic::host;
use crate::gic::lists::Lists;
use crate::hw::enable::{Facts, Space};
use crate::hw::mmio::Registers;
use crate::hw::{
    CNTFRQ_EL0, CNTHP_CTL_EL2, CNTHP_CVAL_EL2, CNTPCT_EL0, CNTVOFF_EL2, ESR_EL2, GuestRegisters, MIDR_EL1,
    VMPIDR_EL2, VPIDR_EL2, Vector, clean, enter, give_up, isb, keep_running, wait_for_interrupt,
};
use crate::machine::Machine;
use crate::psci::{self, Status};
use crate::vmsa::Vmsa;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
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
use bulkhead_vdev::gicv3::{Gicv3, HardwareLine};
use bulkhead_vdev::{IrqLines, VcpuSet, virt};
use context::Context;
use core::fmt;
use core::marker::PhantomData;
use exits::fault;

/// CNTHP_CTL_EL2: enabled.
const TIMER_ENABLED: u64 = 1;

/// One physical CPU with EL2 switched on.
pub struct El2 {
    facts: Facts,
    machine: &'static Machine<'static>,
    redistributor: Registers,
    platform: Platform,
    /// All CPUs, as targets of software interrupts.
    targets: Vec<host::Target>,
    /// It is the CPU it was made on.
    not_send: PhantomData<*const ()>,
}

/// What the program that links this library does for it.
#[derive(Clone, Copy)]
pub struct Platform {
    /// Starts CPU number `.0`, which calls the main function; the status that firmware answers.
    pub start_cpu: fn(usize, &'static CpuMain<El2>) -> u64,
    /// Switches the machine off.
    pub power_off: fn() -> !,
}

/// One vCPU's registers.
pub struct Vcpu {
    registers: Box<GuestRegisters>,
    context: Box<Context>,
    space: Space,
    id: VcpuId,
    /// Its waits come back to the core, because others want the CPU.
    waits_trap: bool,
    /// The last exception that was its own: the access that waits for an answer, or what ended it.
    access: Esr,
    /// It reached a device in a way that nobody serves, and that was said.
    was_unserved: bool,
}

/// One VM's interrupt controller: the model, as the core's wires see it.
pub struct Irqs(pub Box<Gicv3>);

impl IrqLines for Irqs {
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet {
        self.0.set_line(line, level)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

impl El2 {
    /// The CPU that executes this, whose controls were set and gave `facts`.
    pub fn new(
        facts: Facts,
        machine: &'static Machine<'static>,
        redistributor: Registers,
        platform: Platform,
    ) -> Self {
        Lists::new(facts.list_registers, facts.vhe).enable(facts.traps_deactivation);
        VPIDR_EL2::write(MIDR_EL1::read());
        CNTVOFF_EL2::write(0);
        CNTHP_CTL_EL2::write(0);
        let targets = machine.cpus.iter().map(|affinity| host::Target::new(*affinity)).collect();
        Self { facts, machine, redistributor, platform, targets, not_send: PhantomData }
    }

    #[inline]
    fn lists(&self) -> Lists {
        Lists::new(self.facts.list_registers, self.facts.vhe)
    }

    /// The private interrupts that a guest has by hardware, as the guest and as the machine numbers them.
    fn hardware_lines(machine: &Machine<'_>) -> [HardwareLine; 2] {
        [
            HardwareLine { intid: virt::VIRTUAL_TIMER_INTID, physical: machine.timers.virtual_intid },
            HardwareLine { intid: virt::PHYSICAL_TIMER_INTID, physical: machine.timers.physical_intid },
        ]
    }

    /// Lets `call` have the guest's interrupt controller and the CPU's list registers, then makes these hold what is most
    /// urgent, and tells the other vCPUs that it is about.
    #[inline(always)]
    fn with_gic<T>(
        &self,
        id: VcpuId,
        vm: &Vm<Self>,
        call: impl FnOnce(&mut Gicv3, &mut Lists) -> (T, VcpuSet),
    ) -> T {
        let mut lists = self.lists();
        let mut irqs = vm.irqs(self);
        let (value, mut woken) = call(&mut irqs.0, &mut lists);
        if irqs.0.wants_refresh(id.0) {
            woken = woken.union(refill(&mut irqs.0, id, &mut lists));
        }
        drop(irqs);
        vm.wake(self, woken, Some(id));
        value
    }

    /// Takes back what the hardware did with the list registers, and fills them again.
    #[inline(never)]
    fn refresh(&self, id: VcpuId, vm: &Vm<Self>) {
        self.with_gic(id, vm, |gic, lists| ((), refill(gic, id, lists)));
    }

    /// Serves one physical interrupt. `None`: the guest goes on.
    #[inline]
    fn interrupt(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let intid = host::acknowledge()?;
        host::drop_priority(intid);
        let timers = &self.machine.timers;
        if intid == timers.virtual_intid || intid == timers.physical_intid {
            let is_virtual = intid == timers.virtual_intid;
            let line = if is_virtual { virt::VIRTUAL_TIMER_INTID } else { virt::PHYSICAL_TIMER_INTID };
            let id = vcpu.id;
            self.with_gic(id, vm, |gic, lists| (gic.timer_fired(id.0, line, lists), VcpuSet::EMPTY));
            return None;
        }
        if intid == host::NUDGE {
            // Heard: `run` looks before it enters again.
            host::deactivate(intid);
            return None;
        }
        self.other_interrupt(intid, vcpu.id, vm)
    }

    #[inline(never)]
    fn other_interrupt(&self, intid: u32, id: VcpuId, vm: &Vm<Self>) -> Option<Exit> {
        self.own_interrupt(intid);
        if intid == self.machine.gic.maintenance_intid {
            self.refresh(id, vm);
            return None;
        }
        Some(Exit::Preempted)
    }

    /// Ends an interrupt that is ours; its cause is served by whoever looks next.
    fn own_interrupt(&self, intid: u32) {
        if intid == self.machine.timers.hypervisor_intid {
            CNTHP_CTL_EL2::write(0);
            isb();
        }
        host::deactivate(intid);
    }
}

// SAFETY: `vcpu` loads the tables of the `Stage2` it was given and nothing else ever goes into VTTBR_EL2; `enter` restores
// the host's registers by itself; every trap that would let a guest change EL2 or another guest is set by `enable`.
#[expect(unsafe_code, reason = "the promise of the seam, kept by `hw`")]
unsafe impl Arch for El2 {
    type Format = Vmsa;
    type Vcpu = Vcpu;
    type Irqs = Irqs;

    const ARCHITECTURE: config::Architecture = config::Architecture::Aarch64;

    fn ram(bytes: u64) -> Vec<RamRange> {
        vec![RamRange { at: virt::RAM, offset: 0, bytes }]
    }

    fn start_cpu(&self, cpu: CpuId, main: &'static CpuMain<Self>) -> Result<(), Unsupported> {
        match (self.platform.start_cpu)(cpu.0 as usize, main) {
            0 => Ok(()),
            _ => Err(Unsupported(
                "firmware does not start one of the CPUs (PSCI CPU_ON): use fewer, or other firmware",
            )),
        }
    }

    fn board(&self, index: usize, vm: &config::Vm, files: Files) -> Result<Board, String> {
        board::board(vm, files, Seeds::derive(self.machine.entropy, index))
    }

    #[inline(never)]
    fn irqs(&self, vm: &config::Vm) -> Irqs {
        Irqs(Box::new(Gicv3::new(vm.vcpus as usize, Self::hardware_lines(self.machine))))
    }

    fn address_bits(&self) -> u32 {
        self.facts.address_bits
    }

    #[inline(never)]
    fn vcpu(&self, vm: &Vm<Self>, id: VcpuId, shared: bool) -> Vcpu {
        Vcpu {
            registers: Box::default(),
            context: Box::new(Context::new(&self.facts)),
            space: Space::new(&vm.space, vm.index),
            id,
            waits_trap: shared,
            access: Esr(0),
            was_unserved: false,
        }
    }

    fn reset(&self, vcpu: &mut Vcpu, entry: Entry) {
        *vcpu.registers = GuestRegisters::default();
        vcpu.registers.x[..4].copy_from_slice(&entry.arguments);
        vcpu.context.reset(entry.pc.0);
    }

    fn load(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) {
        vcpu.space.load(&self.facts, vcpu.waits_trap);
        VMPIDR_EL2::write(psci::mpidr(vcpu.id.0));
        vcpu.context.load(&self.facts);
        let held = self.with_gic(vcpu.id, vm, |gic, lists| gic.load(vcpu.id.0, lists));
        // It may be unloaded again without having been entered.
        isb();
        let physical = Self::hardware_lines(self.machine)
            .iter()
            .filter(|line| held >> line.intid & 1 != 0)
            .fold(0, |intids, line| intids | 1 << (line.physical & 31));
        if physical != 0 {
            host::activate_private(&self.redistributor, physical);
        }
    }

    fn unload(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) {
        let (_, woken) = vm.irqs(self).0.unload(vcpu.id.0, &mut self.lists());
        vm.wake(self, woken, Some(vcpu.id));
        vcpu.context.save(&self.facts);
    }

    fn abandon(&self, _vcpu: &mut Vcpu) {
        Context::silence(&self.facts);
        self.lists().enable(self.facts.traps_deactivation);
        host::deactivate_private(&self.redistributor);
    }

    #[inline]
    fn run(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Exit {
        loop {
            if vm.take_attention(vcpu.id) {
                // Serving the last exit may have written list registers.
                isb();
                self.refresh(vcpu.id, vm);
            }
            let exit = match enter(&mut vcpu.registers) {
                Vector::Synchronous => self.synchronous(vcpu, vm),
                Vector::Irq => self.interrupt(vcpu, vm),
                Vector::Fiq => {
                    fault("a fast interrupt came while it ran, and the machine should have none", None)
                }
                Vector::SError => {
                    vcpu.access = Esr(ESR_EL2::read());
                    fault("the machine reported a system error while it ran", None)
                }
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    #[inline]
    fn complete(&self, vcpu: &mut Vcpu, value: u64) {
        let abort = vcpu.access.abort();
        if !abort.is_write()
            && let Some(register) = vcpu.registers.x.get_mut(abort.register())
        {
            *register = abort.extend(value);
        }
        exits::skip(vcpu.access);
    }

    fn refuse(&self, vcpu: &mut Vcpu) {
        self.inject_external(vcpu.access);
    }

    fn reply(&self, vcpu: &mut Vcpu, result: u64) {
        vcpu.registers.x[0] = result;
    }

    fn started(&self, vcpu: &mut Vcpu, result: Result<(), StartError>) {
        let status = match result {
            Ok(()) => Status::Success,
            Err(StartError::AlreadyOn) => Status::AlreadyOn,
            Err(StartError::NoSuchVcpu) => Status::InvalidParameters,
        };
        self.reply(vcpu, status.register());
    }

    fn alarm(&self, vcpu: &Vcpu) -> Option<Ticks> {
        vcpu.context.alarm().map(Ticks)
    }

    fn is_stuck(&self, _vcpu: &Vcpu) -> bool {
        exits::faults_on_its_vector(self.facts.vhe)
    }

    fn invalidate(&self, vm: usize, space: &Stage2<Vmsa>) {
        Space::new(space, vm).forget();
    }

    fn publish(&self, at: Hpa, bytes: usize) {
        clean(at.0, bytes);
    }

    fn kick(&self, cpu: CpuId) {
        if let Some(target) = self.targets.get(cpu.0 as usize) {
            host::send(host::KICK, *target);
        }
    }

    fn nudge(&self, cpu: CpuId) {
        if let Some(target) = self.targets.get(cpu.0 as usize) {
            host::send(host::NUDGE, *target);
        }
    }

    #[inline]
    fn now(&self) -> Ticks {
        Ticks(CNTPCT_EL0::read())
    }

    fn ticks_per_second(&self) -> u64 {
        CNTFRQ_EL0::read()
    }

    fn wake_at(&self, at: Option<Ticks>) {
        match at {
            Some(at) => {
                CNTHP_CVAL_EL2::write(at.0);
                CNTHP_CTL_EL2::write(TIMER_ENABLED);
            }
            None => CNTHP_CTL_EL2::write(0),
        }
    }

    fn idle(&self) {
        wait_for_interrupt();
        // One alone: a level that its device still holds would come again and again before anybody served it.
        if let Some(intid) = host::acknowledge() {
            host::drop_priority(intid);
            self.own_interrupt(intid);
        }
    }

    fn describe(&self, vcpu: &Vcpu, out: &mut dyn fmt::Write) -> fmt::Result {
        // Who is stuck made no exit: what it made before tells nothing.
        let exit = (!self.is_stuck(vcpu)).then_some(vcpu.access);
        report::describe(exit, &vcpu.registers, self.facts.vhe, out)
    }

    fn keep_running(cpu: &'static mut Cpu<Self>) -> ! {
        keep_running(cpu)
    }

    fn give_up(&self) -> ! {
        give_up()
    }

    fn power_off(&self) -> ! {
        (self.platform.power_off)()
    }
}

/// Takes back what the hardware did with the list registers, and fills them again.
#[inline(never)]
fn refill(gic: &mut Gicv3, id: VcpuId, lists: &mut Lists) -> VcpuSet {
    gic.refresh(id.0, lists)
}

/// The vCPU that a guest's affinity value names.
fn vcpu_of<A: Arch>(target: u64, vm: &Vm<A>) -> Option<VcpuId> {
    psci::vcpu_index(target, vm.vcpus()).map(VcpuId)
}
