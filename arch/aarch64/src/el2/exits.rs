//! What a guest's synchronous exceptions mean, and what becomes of them.

use super::{El2, Vcpu, vcpu_of};
use crate::board::{self, GICD_BYTES, GICR_BYTES};
use crate::debug::{CONTROL_BITS, DebugRegister};
use crate::esr::{Class, Direction, Encoding, Esr, Wait, page_and_offset};
use crate::hw::{
    DBGBCR_EL1, DBGBVR_EL1, DBGWCR_EL1, DBGWVR_EL1, ELR_EL1, ELR_EL2, ESR_EL1, ESR_EL2, FAR_EL1, FAR_EL2,
    HPFAR_EL2, ID_CRM1_EL1, ID_CRM2_EL1, ID_CRM3_EL1, ID_CRM4_EL1, ID_CRM5_EL1, ID_CRM6_EL1, ID_CRM7_EL1,
    MDSCR_EL1, OSLAR_EL1, OSLSR_EL1, SCTLR_EL1, SPSR_EL1, SPSR_EL2, VBAR_EL1, set_guest_pstate,
};
use crate::idregs::{self, Offered, Trapped};
use crate::inject::{Exception, Interrupted};
use crate::psci::{self, Affinity, Call, Status};
use bulkhead::arch::{Arch as _, Entry, Exit, Fault, Place, Stop, VcpuId};
use bulkhead::config::Unmapped;
use bulkhead::vm::Vm;
use bulkhead_vdev::{Access, Gpa, VcpuSet, Width, virt};

/// Where the handler of a synchronous exception of EL1 itself starts, from `VBAR_EL1`.
const OWN_SYNCHRONOUS: u64 = 0x200;
/// `SPSR_EL2.SS`: one more instruction, then a software step exception (Arm ARM D2.12).
const STEP_TO_GO: u64 = 1 << 21;
/// `VBAR_EL1`: sixteen entries of 128 bytes.
const VECTORS_BYTES: u64 = 0x800;
const VECTOR_BYTES: u64 = 0x80;

/// Whether the guest's handler of its own exceptions cannot be executed, so that it takes the same exception for ever.
pub(super) fn faults_on_its_vector(vhe: bool) -> bool {
    let handler = VBAR_EL1::read(vhe).wrapping_add(OWN_SYNCHRONOUS);
    ELR_EL2::read() == handler
        && ELR_EL1::read(vhe) == handler
        && Esr(ESR_EL1::read(vhe)).class() == Class::INSTRUCTION_ABORT_SAME
}

pub(super) fn fault(cause: &'static str, at: Option<Place>) -> Option<Exit> {
    Some(Exit::Stopped(Stop::Fault(Fault { cause, at })))
}

/// Steps over the instruction that trapped.
#[inline(always)]
pub(super) fn skip(esr: Esr) {
    step_over(esr.instruction_bytes());
}

/// Goes on behind an instruction of `bytes`, as if the CPU had executed it: then a single step of the guest's is done, too.
#[inline(always)]
fn step_over(bytes: u64) {
    ELR_EL2::write(ELR_EL2::read().wrapping_add(bytes));
    let pstate = SPSR_EL2::read();
    if pstate & STEP_TO_GO != 0 {
        end_step(pstate);
    }
}

#[cold]
#[inline(never)]
fn end_step(pstate: u64) {
    set_guest_pstate(pstate & !STEP_TO_GO);
}

impl El2 {
    /// Serves one synchronous exception. `None`: the guest goes on.
    #[inline]
    pub(super) fn synchronous(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let esr = Esr(ESR_EL2::read());
        // The hot ones first: a table of branches would cost each of them more than the few comparisons.
        if esr.class() == Class::HVC {
            return self.call(vcpu, vm);
        }
        if esr.class() == Class::DATA_ABORT_LOWER {
            return self.data_abort(esr, vcpu, vm);
        }
        if esr.class() == Class::SYSTEM_REGISTER {
            return self.system_register(esr, vcpu, vm);
        }
        self.rare(esr, vcpu, vm)
    }

    /// Exceptions that a guest takes seldom, or should not take.
    #[cold]
    #[inline(never)]
    fn rare(&self, esr: Esr, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        match esr.class() {
            Class::SMC => {
                skip(esr);
                self.call(vcpu, vm)
            }
            Class::WAIT => self.wait(esr, vcpu, vm),
            Class::INSTRUCTION_ABORT_LOWER => self.instruction_abort(esr, vcpu, vm),
            // What is trapped because it is not offered is undefined for the guest.
            Class::UNKNOWN
            | Class::SVE
            | Class::SME
            | Class::FLOATING_POINT
            | Class::POINTER_AUTHENTICATION
            | Class::LS64
            | Class::SYSTEM_REGISTER_PAIR
            | Class::ERET
            | Class::AARCH32_CP15
            | Class::AARCH32_CP15_PAIR
            | Class::AARCH32_CP14
            | Class::AARCH32_CP14_MEMORY
            | Class::AARCH32_CP14_PAIR
            | Class::AARCH32_VMRS => {
                self.inject(Exception::Undefined, None);
                None
            }
            _ => {
                vcpu.access = esr;
                fault("it took an exception that should never come to the hypervisor", None)
            }
        }
    }

    // Accesses to memory

    #[inline]
    fn data_abort(&self, esr: Esr, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        vcpu.access = esr;
        let abort = esr.abort();
        if !abort.is_plain_access() {
            return self.other_data_abort(vcpu, vm);
        }
        let at = page_and_offset(HPFAR_EL2::read(), FAR_EL2::read());
        let access = abort.access(vcpu.registers.x.get(abort.register()).copied().unwrap_or(0));
        if let Some(value) = self.interrupt_controller(at, access, vcpu.id, vm) {
            self.complete(vcpu, value);
            return None;
        }
        Some(Exit::Io(Place::Memory(at), access))
    }

    /// The GIC's registers are served here: they go with the CPU's list registers.
    #[inline]
    fn interrupt_controller(&self, at: Gpa, access: Access, id: VcpuId, vm: &Vm<Self>) -> Option<u64> {
        let end = access.width().bytes();
        let distributor = at.0.wrapping_sub(virt::GICD.0);
        let redistributor = at.0.wrapping_sub(virt::GICR.0);
        if distributor <= GICD_BYTES - end {
            return Some(
                self.with_gic(id, vm, |gic, lists| gic.distributor(id.0, distributor, access, lists)),
            );
        }
        if redistributor <= GICR_BYTES * vm.vcpus() as u64 - end {
            return Some(
                self.with_gic(id, vm, |gic, lists| gic.redistributor(id.0, redistributor, access, lists)),
            );
        }
        None
    }

    /// An access that the CPU does not describe: several registers, an exclusive, a table walk, cache maintenance. Or one that
    /// the machine itself failed.
    #[cold]
    #[inline(never)]
    fn other_data_abort(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let esr = vcpu.access;
        let abort = esr.abort();
        if !abort.hpfar_is_valid() {
            return machine_abort();
        }
        if abort.is_cache_maintenance() {
            skip(esr);
            return None;
        }
        let at = abort.address(HPFAR_EL2::read(), FAR_EL2::read());
        let access = if abort.is_write() { Access::Write(Width::Word, 0) } else { Access::Read(Width::Word) };
        if !abort.on_table_walk() && board::has_device(at, vm.vcpus()) {
            return self.unserved(
                "it reached a device by an instruction that is not made for devices",
                at,
                vcpu,
                vm,
            );
        }
        self.nowhere(esr, at, access, vm)
    }

    fn instruction_abort(&self, esr: Esr, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        vcpu.access = esr;
        if !esr.abort().hpfar_is_valid() {
            return machine_abort();
        }
        let at = esr.abort().address(HPFAR_EL2::read(), FAR_EL2::read());
        if self.is_at_its_handler() {
            return fault(self.why_its_vector_fails(esr), Some(Place::Memory(at)));
        }
        if !esr.abort().on_table_walk() && board::has_device(at, vm.vcpus()) {
            return self.unserved("it jumped to a device", at, vcpu, vm);
        }
        self.nowhere(esr, at, Access::Read(Width::Word), vm)
    }

    /// The guest gets what the bus would say where nothing answers: an external abort.
    fn nowhere(&self, esr: Esr, at: Gpa, access: Access, vm: &Vm<Self>) -> Option<Exit> {
        if let Err(fault) = vm.nowhere(self, Place::Memory(at), access) {
            return Some(Exit::Stopped(Stop::Fault(fault)));
        }
        self.inject_external(esr);
        None
    }

    /// A device is there, but no way to serve this access: as [`Self::nowhere`], in other words. Each vCPU is told of once.
    fn unserved(&self, cause: &'static str, at: Gpa, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        if vm.config.unmapped == Unmapped::Stop {
            return fault(cause, Some(Place::Memory(at)));
        }
        if !core::mem::replace(&mut vcpu.was_unserved, true) {
            log::warn!("{}: {cause}, at address {at}: it takes an external abort", vm.config.name);
        }
        self.inject_external(vcpu.access);
        None
    }

    /// What made the guest come to its handler of synchronous exceptions, which cannot be fetched: `ESR_EL1` tells it, unless that
    /// was our answer to a vector that could not be fetched either.
    fn why_its_vector_fails(&self, esr: Esr) -> &'static str {
        let vhe = self.facts.vhe;
        if esr.abort().on_table_walk() {
            return "its translation tables lie where nothing is, and so does its exception vector for that";
        }
        let interrupted = ELR_EL1::read(vhe).wrapping_sub(VBAR_EL1::read(vhe));
        let was_in_vectors = interrupted < VECTORS_BYTES && interrupted.is_multiple_of(VECTOR_BYTES);
        let is_jump = matches!(
            Esr(ESR_EL1::read(vhe)).class(),
            Class::INSTRUCTION_ABORT_SAME | Class::INSTRUCTION_ABORT_LOWER
        );
        if is_jump && !was_in_vectors {
            return "it jumped to where nothing is, and its exception vector for that lies where nothing is too";
        }
        "its exception vector lies where nothing is, and it had to take the exception that EL1 tells of below"
    }

    /// The handler that an injected exception would go to is where the guest is already.
    fn is_at_its_handler(&self) -> bool {
        ELR_EL2::read() == VBAR_EL1::read(self.facts.vhe).wrapping_add(OWN_SYNCHRONOUS)
    }

    // Calls

    #[inline]
    fn call(&self, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let [x0, x1, x2, x3, ..] = vcpu.registers.x;
        if psci::is_version(x0) {
            vcpu.registers.x[0] = psci::PSCI_VERSION;
            return None;
        }
        self.other_call([x0, x1, x2, x3], vcpu, vm)
    }

    #[inline(never)]
    fn other_call(&self, call: [u64; 4], vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let result = match Call::decode(call) {
            Call::Version => psci::PSCI_VERSION,
            Call::SmcccVersion => psci::SMCCC_VERSION,
            Call::MigrateInfoType => psci::NO_MIGRATION,
            Call::Features(function) => psci::features(function).register(),
            Call::ArchFeatures(function) => psci::arch_features(function).register(),
            Call::AffinityInfo { target, level } => affinity_info(target, level, vm),
            Call::CpuOn { target, entry, context } => match vcpu_of(target, vm) {
                Some(_) if !psci::is_entry(entry, vm.config.ram_bytes) => Status::InvalidAddress.register(),
                Some(target) => {
                    let entry = Entry { pc: Gpa(entry), arguments: [context, 0, 0, 0], state: 0 };
                    return Some(Exit::Start(VcpuSet::only(target.0), entry));
                }
                None => Status::InvalidParameters.register(),
            },
            Call::CpuSuspend { state, .. } => {
                if !state.is_valid() || state.is_power_down() {
                    Status::InvalidParameters.register()
                } else {
                    vcpu.registers.x[0] = Status::Success.register();
                    return self.wait_unless_pending(vcpu, vm);
                }
            }
            Call::CpuOff => return Some(Exit::Stopped(Stop::CpuOff)),
            Call::SystemOff => return Some(Exit::Stopped(Stop::PowerOff)),
            Call::SystemReset => return Some(Exit::Stopped(Stop::Reset)),
            // 0 is the warm reset that the specification defines.
            Call::SystemReset2 { kind: 0 } => return Some(Exit::Stopped(Stop::Reset)),
            Call::SystemReset2 { .. } => Status::InvalidParameters.register(),
            Call::Service(number) => return Some(Exit::Hypercall(number, [call[1], call[2], call[3], 0])),
            Call::Unknown => Status::NotSupported.register(),
        };
        vcpu.registers.x[0] = result;
        None
    }

    // Waiting

    fn wait(&self, esr: Esr, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        skip(esr);
        match esr.wait() {
            Wait::Interrupt => self.wait_unless_pending(vcpu, vm),
            // Only WFI is trapped; whatever else comes may return at once, as the architecture allows.
            _ => None,
        }
    }

    fn wait_unless_pending(&self, vcpu: &Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let pending = vm.irqs(self).0.has_pending(vcpu.id.0, &self.lists());
        if pending { None } else { Some(Exit::Idle) }
    }

    // System registers

    #[inline]
    fn system_register(&self, esr: Esr, vcpu: &mut Vcpu, vm: &Vm<Self>) -> Option<Exit> {
        let access = esr.system_register();
        let (id, encoding) = (vcpu.id, access.encoding());
        let given = vcpu.registers.x.get(access.register()).copied().unwrap_or(0);
        if idregs::is_software_interrupt(encoding, access.direction()) {
            self.with_gic(id, vm, |gic, lists| ((), gic.send_sgi(id.0, given, lists)));
            step_over(4);
            return None;
        }
        let value = match idregs::classify(encoding, access.direction()) {
            Trapped::Deactivate => {
                let intid = u32::try_from(given & 0xff_ffff).unwrap_or(0);
                self.with_gic(id, vm, |gic, lists| (0, gic.deactivate(id.0, intid, lists)))
            }
            Trapped::SoftwareInterruptOfOtherGroup => {
                self.with_gic(id, vm, |gic, lists| (0, gic.send_group_0_sgi(id.0, given, lists)))
            }
            Trapped::Identification => self.identification(encoding),
            Trapped::Constant(value) => value,
            Trapped::Debug(register) if self.has(register) => debug(register, access.direction(), given),
            Trapped::Debug(_) | Trapped::Undefined => {
                self.inject(Exception::Undefined, None);
                return None;
            }
        };
        if matches!(access.direction(), Direction::Read)
            && let Some(register) = vcpu.registers.x.get_mut(access.register())
        {
            *register = value;
        }
        skip(esr);
        None
    }

    /// What the guest reads in the identification register `encoding`.
    #[cold]
    #[inline(never)]
    fn identification(&self, encoding: Encoding) -> u64 {
        let offered = Offered {
            address_bits: self.facts.address_bits,
            sve: self.facts.vector_bytes > 0,
            aarch32: self.facts.aarch32,
        };
        idregs::filter(encoding, hardware_identification(encoding), &offered)
    }

    /// Whether the CPU has that many breakpoints and watchpoints.
    const fn has(&self, register: DebugRegister) -> bool {
        match register {
            DebugRegister::BreakpointValue(number) | DebugRegister::BreakpointControl(number) => {
                number < self.facts.breakpoints
            }
            DebugRegister::WatchpointValue(number) | DebugRegister::WatchpointControl(number) => {
                number < self.facts.watchpoints
            }
            _ => true,
        }
    }

    // Exceptions for the guest

    pub(super) fn inject_external(&self, esr: Esr) {
        self.inject(Exception::external(esr.class(), esr.abort()), Some(FAR_EL2::read()));
    }

    /// The guest takes `exception` at the instruction that it is at.
    #[cold]
    #[inline(never)]
    fn inject(&self, exception: Exception, far: Option<u64>) {
        let vhe = self.facts.vhe;
        let pstate = SPSR_EL2::read();
        let taken = exception.inject(Interrupted { pstate, sctlr: SCTLR_EL1::read(vhe) });
        ESR_EL1::write(vhe, taken.esr);
        if let Some(far) = far {
            FAR_EL1::write(vhe, far);
        }
        ELR_EL1::write(vhe, ELR_EL2::read());
        SPSR_EL1::write(vhe, pstate);
        ELR_EL2::write(VBAR_EL1::read(vhe).wrapping_add(taken.vector_offset));
        set_guest_pstate(taken.spsr);
    }
}

/// Reads or writes what the guest has of a debug register: the CPU's own, which moves with the guest.
#[cold]
#[inline(never)]
fn debug(register: DebugRegister, direction: Direction, given: u64) -> u64 {
    if matches!(direction, Direction::Read) {
        return match register {
            DebugRegister::BreakpointValue(number) => DBGBVR_EL1::read(number),
            DebugRegister::BreakpointControl(number) => DBGBCR_EL1::read(number),
            DebugRegister::WatchpointValue(number) => DBGWVR_EL1::read(number),
            DebugRegister::WatchpointControl(number) => DBGWCR_EL1::read(number),
            DebugRegister::Control => MDSCR_EL1::read() & CONTROL_BITS,
            DebugRegister::LockStatus => OSLSR_EL1::read(),
            DebugRegister::Lock => 0,
            DebugRegister::Constant(value) => value,
        };
    }
    match register {
        DebugRegister::BreakpointValue(number) => DBGBVR_EL1::write(number, given),
        DebugRegister::BreakpointControl(number) => DBGBCR_EL1::write(number, given),
        DebugRegister::WatchpointValue(number) => DBGWVR_EL1::write(number, given),
        DebugRegister::WatchpointControl(number) => DBGWCR_EL1::write(number, given),
        DebugRegister::Control => MDSCR_EL1::write(given & CONTROL_BITS),
        DebugRegister::Lock => OSLAR_EL1::write(given),
        DebugRegister::LockStatus | DebugRegister::Constant(_) => (),
    }
    0
}

fn affinity_info(target: u64, level: u64, vm: &Vm<El2>) -> u64 {
    if level != 0 {
        return Status::InvalidParameters.register();
    }
    match vcpu_of(target, vm).and_then(|target| vm.is_on(target)) {
        Some(true) => Affinity::On as u64,
        Some(false) => Affinity::Off as u64,
        None => Status::InvalidParameters.register(),
    }
}

/// The machine itself failed an access.
#[cold]
fn machine_abort() -> Option<Exit> {
    fault("the machine failed one of its accesses to memory", None)
}

/// What the CPU says in the identification register `encoding`.
fn hardware_identification(encoding: Encoding) -> u64 {
    let number = encoding.op2() as usize;
    match encoding.crm() {
        1 => ID_CRM1_EL1::read(number),
        2 => ID_CRM2_EL1::read(number),
        3 => ID_CRM3_EL1::read(number),
        4 => ID_CRM4_EL1::read(number),
        5 => ID_CRM5_EL1::read(number),
        6 => ID_CRM6_EL1::read(number),
        7 => ID_CRM7_EL1::read(number),
        _ => 0,
    }
}
