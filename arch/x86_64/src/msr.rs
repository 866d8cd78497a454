//! Which model-specific registers a guest has: which the CPU itself serves, which are emulated, which raise #GP.
//!
//! Pure. A whitelist: what is not named raises #GP, as on a CPU that lacks it. What natively any Linux reads at boot on AMD and
//! Intel works. [`Msrs`] is the state that only the guest itself ever sees; what has an effect elsewhere (APIC, timer, modes)
//! is handed to the caller as [`Owner`].
#![forbid(unsafe_code)]

mod mtrr;
#[cfg(test)]
mod tests;

use self::mtrr::Mtrrs;
use crate::control::GeneralProtection;
use crate::cpuid::{Maker, Table};

/// Whose an emulated register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// IA32_APIC_BASE: the local APIC.
    ApicBase,
    /// An x2APIC register: MSR number - 0x800. #GP unless in x2APIC mode.
    X2Apic(u16),
    /// IA32_TSC_DEADLINE: the local APIC.
    TscDeadline,
    /// IA32_TIME_STAMP_COUNTER: the counter with the guest's offset.
    Tsc,
    /// IA32_TSC_ADJUST: a write moves the counter by the difference.
    TscAdjust,
    /// EFER: [`crate::control::write_efer`].
    Efer,
    /// IA32_PAT: the value was checked already.
    Pat,
    /// In the guest's control block or the CPU, passed through normally; the number. Only reached when the bitmap does not let it pass.
    Native(u32),
    /// [`Msrs`] itself; never in an [`Answer`].
    Plain,
}

/// Reading or writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// RDMSR
    Read,
    /// WRMSR
    Write,
}

/// The answer to RDMSR or WRMSR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// RDMSR gives this.
    Value(u64),
    /// WRMSR is done.
    Done,
    /// The caller's: reads or writes it there.
    Ask(Owner),
}

/// What the host's own registers say that a guest may know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostWords {
    /// IA32_BIOS_SIGN_ID, AMD's PATCH_LEVEL (0x8b): the microcode's revision.
    pub revision: u64,
    /// IA32_ARCH_CAPABILITIES: what the CPU is not vulnerable to.
    pub arch_capabilities: u64,
}

/// One vCPU's registers that nobody else looks at.
#[derive(Clone, Debug)]
pub struct Msrs {
    has: Has,
    host: HostWords,
    /// IA32_PLATFORM_INFO
    platform_info: u64,
    mtrrs: Mtrrs,
    fast_strings: u64,
    check_status: u64,
    /// IA32_MC0_CTL, STATUS, ADDR, MISC
    bank: [u64; 4],
    umwait: u64,
    hwcr: u64,
    syscfg: u64,
}

/// Which groups of registers there are, by CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Has {
    maker: Maker,
    mtrr: bool,
    machine_check: bool,
    tsc_adjust: bool,
    tsc_aux: bool,
    xsaves: bool,
    osvw: bool,
    umwait: bool,
    arch_capabilities: bool,
    /// Bits of SPEC_CTRL; 0 without the register.
    spec_ctrl: u64,
    pred_cmd: bool,
    flush_cmd: bool,
    long_mode: bool,
}

/// Numbers (SDM Vol. 4; APM Vol. 2, appendix A).
mod number {
    pub(super) const P5_ADDRESS: u32 = 0;
    pub(super) const P5_TYPE: u32 = 1;
    pub(super) const TSC: u32 = 0x10;
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const EBL_CR_POWERON: u32 = 0x2a;
    pub(super) const FEATURE_CONTROL: u32 = 0x3a;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const SPEC_CTRL: u32 = 0x48;
    pub(super) const PRED_CMD: u32 = 0x49;
    pub(super) const UPDATE_TRIGGER: u32 = 0x79;
    pub(super) const REVISION: u32 = 0x8b;
    pub(super) const PLATFORM_INFO: u32 = 0xce;
    pub(super) const UMWAIT_CONTROL: u32 = 0xe1;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(super) const FLUSH_CMD: u32 = 0x10b;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const CHECK_CAPABILITIES: u32 = 0x179;
    pub(super) const CHECK_STATUS: u32 = 0x17a;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUG_CONTROL: u32 = 0x1d9;
    pub(super) const LAST_BRANCH_FROM: u32 = 0x1db;
    pub(super) const LAST_EXCEPTION_TO: u32 = 0x1de;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const BANK_0: u32 = 0x400;
    pub(super) const BANK_0_LAST: u32 = 0x403;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const X2APIC: u32 = 0x800;
    pub(super) const X2APIC_LAST: u32 = 0x8ff;
    pub(super) const XSS: u32 = 0xda0;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const SFMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    pub(super) const TOP_MEM: u32 = 0xc001_001a;
    pub(super) const TOP_MEM2: u32 = 0xc001_001d;
    pub(super) const NB_CFG: u32 = 0xc001_001f;
    pub(super) const PATCH_LOADER: u32 = 0xc001_0020;
    pub(super) const INT_PENDING: u32 = 0xc001_0055;
    pub(super) const VM_CR: u32 = 0xc001_0114;
    pub(super) const OSVW_LENGTH: u32 = 0xc001_0140;
    pub(super) const OSVW_STATUS: u32 = 0xc001_0141;
    pub(super) const DC_CFG: u32 = 0xc001_1022;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
    pub(super) const BU_CFG2: u32 = 0xc001_102a;
}

/// IA32_FEATURE_CONTROL: locked, with nothing enabled.
const FEATURES_LOCKED: u64 = 1;
/// IA32_MISC_ENABLE: fast strings.
const FAST_STRINGS: u64 = 1;
/// IA32_MISC_ENABLE: no branch trace storage, no event-based sampling.
const NO_TRACES: u64 = 1 << 11 | 1 << 12;
/// IA32_DEBUGCTL bits that a guest may set without an effect: LBR, BTF, and what PMUs do.
const DEBUG_IGNORED: u64 = 0xffc3;
/// MCG_CAP: one bank, and nothing else.
const ONE_BANK: u64 = 1;
/// HWCR: the TSC counts at the frequency of P0, whatever the P-state is (APM Vol. 2, 17.2).
const TSC_AT_P0: u64 = 1 << 24;
/// HWCR: a write of a bank's status may hold anything.
const CHECK_STATUS_WRITABLE: u64 = 1 << 18;
/// SYSCFG: what firmware sets up of memory types and top of memory.
const SYSCFG_WRITABLE: u64 = 0x1f << 18;
/// VM_CR: LOCK and SVMDIS (APM Vol. 2, 15.30.1).
const NO_SVM: u64 = 1 << 3 | 1 << 4;
/// DE_CFG: LFENCE serialises, as `hw::svm` sets it up, or as the CPU has it by itself.
const LFENCE_SERIALISES: u64 = 1 << 1;
/// IA32_ARCH_CAPABILITIES: what says that something is not needed, or that VERW does it (SDM Vol. 4, table 2-2).
const HARMLESS_CAPABILITIES: u64 = 0x1d1a_e17f;

impl Msrs {
    /// As after power-on, for a guest with this CPUID.
    #[must_use]
    pub fn new(cpuid: &Table) -> Self {
        let mhz = cpuid.tsc_hz() / 1_000_000;
        Self {
            has: Has::new(cpuid),
            host: HostWords::default(),
            platform_info: ((mhz / 100) & 0xff) << 8,
            mtrrs: Mtrrs::new(cpuid.offer().address_bits),
            fast_strings: FAST_STRINGS,
            check_status: 0,
            bank: [0; 4],
            umwait: 0,
            hwcr: TSC_AT_P0,
            syscfg: 0,
        }
    }

    /// The same, knowing what the host's registers say.
    #[must_use]
    pub fn with_host(mut self, host: HostWords) -> Self {
        self.host = host;
        self
    }

    /// As after power-on, and as firmware sets up memory types.
    pub fn reset(&mut self) {
        self.mtrrs.reset();
        self.fast_strings = FAST_STRINGS;
        self.check_status = 0;
        self.bank = [0; 4];
        self.umwait = 0;
        self.hwcr = TSC_AT_P0;
        self.syscfg = 0;
    }

    /// RDMSR of `number`.
    ///
    /// # Errors
    /// The guest has no such register.
    #[inline]
    pub fn read(&self, number: u32) -> Result<Answer, GeneralProtection> {
        match self.owner(number, Direction::Read) {
            Some(Owner::Plain) => self.read_plain(number).map(Answer::Value).ok_or(GeneralProtection),
            Some(owner) => Ok(Answer::Ask(owner)),
            None => Err(GeneralProtection),
        }
    }

    /// WRMSR of `number`.
    ///
    /// # Errors
    /// The guest has no such register, or it cannot take `value`.
    #[inline]
    pub fn write(&mut self, number: u32, value: u64) -> Result<Answer, GeneralProtection> {
        match self.owner(number, Direction::Write) {
            Some(Owner::Plain) => {
                self.write_plain(number, value).map(|()| Answer::Done).ok_or(GeneralProtection)
            }
            Some(Owner::Pat) if !mtrr::is_pat(value) => Err(GeneralProtection),
            Some(Owner::Native(number::SPEC_CTRL)) if value & !self.has.spec_ctrl != 0 => {
                Err(GeneralProtection)
            }
            Some(owner) => Ok(Answer::Ask(owner)),
            None => Err(GeneralProtection),
        }
    }

    /// The registers that the CPU may serve itself, and in which direction: for the bitmap.
    ///
    /// Whatever is named here reaches the CPU's own register: each is one that is switched with the guest, or a command that
    /// leaves nothing behind.
    pub fn native(&self) -> impl Iterator<Item = (u32, Direction)> {
        const RANGES: [(u32, u32); 7] = [
            (number::SPEC_CTRL, number::SPEC_CTRL),
            (number::PRED_CMD, number::PRED_CMD),
            (number::FLUSH_CMD, number::FLUSH_CMD),
            (number::SYSENTER_CS, number::SYSENTER_EIP),
            (number::STAR, number::SFMASK),
            (number::FS_BASE, number::KERNEL_GS_BASE),
            (number::TSC_AUX, number::TSC_AUX),
        ];
        let numbers = RANGES.into_iter().flat_map(|(first, last)| first..=last);
        let both = numbers.flat_map(|number| [(number, Direction::Read), (number, Direction::Write)]);
        both.filter(|(number, direction)| matches!(self.owner(*number, *direction), Some(Owner::Native(_))))
    }

    /// Whose `number` is; `None` raises #GP.
    #[inline]
    fn owner(&self, number: u32, direction: Direction) -> Option<Owner> {
        let has = &self.has;
        let is_write = direction == Direction::Write;
        let native = |there: bool| there.then_some(Owner::Native(number));
        match number {
            number::X2APIC..=number::X2APIC_LAST => {
                u16::try_from(number - number::X2APIC).ok().map(Owner::X2Apic)
            }
            number::TSC_DEADLINE => Some(Owner::TscDeadline),
            number::APIC_BASE => Some(Owner::ApicBase),
            number::EFER => Some(Owner::Efer),
            number::TSC => Some(Owner::Tsc),
            number::TSC_ADJUST => has.tsc_adjust.then_some(Owner::TscAdjust),
            number::PAT => Some(Owner::Pat),
            number::SYSENTER_CS..=number::SYSENTER_EIP => native(true),
            number::STAR..=number::SFMASK | number::FS_BASE..=number::KERNEL_GS_BASE => native(has.long_mode),
            number::TSC_AUX => native(has.tsc_aux),
            number::SPEC_CTRL => native(has.spec_ctrl != 0),
            number::PRED_CMD => native(has.pred_cmd && is_write),
            number::FLUSH_CMD => native(has.flush_cmd && is_write),
            _ => Some(Owner::Plain),
        }
    }

    fn read_plain(&self, number: u32) -> Option<u64> {
        match number {
            number::REVISION => Some(self.host.revision),
            number::ARCH_CAPABILITIES if self.has.arch_capabilities => {
                Some(self.host.arch_capabilities & HARMLESS_CAPABILITIES)
            }
            number::UMWAIT_CONTROL if self.has.umwait => Some(self.umwait),
            number::XSS if self.has.xsaves => Some(0),
            number::CHECK_CAPABILITIES if self.has.machine_check => Some(ONE_BANK),
            number::CHECK_STATUS if self.has.machine_check => Some(self.check_status),
            number::BANK_0..=number::BANK_0_LAST if self.has.machine_check => {
                self.bank.get(bank_index(number)).copied()
            }
            // Branches are not recorded.
            number::DEBUG_CONTROL | number::LAST_BRANCH_FROM..=number::LAST_EXCEPTION_TO => Some(0),
            _ => self.read_memory_type(number).or_else(|| match self.has.maker {
                Maker::Intel => self.read_intel(number),
                Maker::Amd => self.read_amd(number),
            }),
        }
    }

    fn read_memory_type(&self, number: u32) -> Option<u64> {
        if self.has.mtrr { self.mtrrs.read(number) } else { None }
    }

    fn read_intel(&self, number: u32) -> Option<u64> {
        match number {
            number::P5_ADDRESS | number::P5_TYPE | number::PLATFORM_ID | number::EBL_CR_POWERON => Some(0),
            number::FEATURE_CONTROL => Some(FEATURES_LOCKED),
            number::PLATFORM_INFO => Some(self.platform_info),
            number::MISC_ENABLE => Some(self.fast_strings | NO_TRACES),
            _ => None,
        }
    }

    fn read_amd(&self, number: u32) -> Option<u64> {
        match number {
            number::SYSCFG => Some(self.syscfg),
            number::HWCR => Some(self.hwcr),
            number::TOP_MEM => Some(u64::from(mtrr::HOLE)),
            number::VM_CR => Some(NO_SVM),
            number::DE_CFG => Some(LFENCE_SERIALISES),
            number::OSVW_LENGTH | number::OSVW_STATUS if self.has.osvw => Some(0),
            number::TOP_MEM2 | number::NB_CFG | number::INT_PENDING | number::DC_CFG | number::BU_CFG2 => {
                Some(0)
            }
            _ => None,
        }
    }

    fn write_plain(&mut self, number: u32, value: u64) -> Option<()> {
        let only = |allowed: bool| allowed.then_some(());
        match number {
            // What is written before CPUID, to read the revision; an update has no effect.
            number::REVISION | number::UPDATE_TRIGGER => Some(()),
            number::UMWAIT_CONTROL if self.has.umwait => {
                self.umwait = value & 0xffff_ffff;
                // Bit 1 is reserved (SDM Vol. 4, table 2-2).
                only(value >> 32 == 0 && value & 2 == 0)
            }
            number::XSS if self.has.xsaves => only(value == 0),
            number::CHECK_STATUS if self.has.machine_check => {
                self.check_status = value;
                Some(())
            }
            number::BANK_0..=number::BANK_0_LAST if self.has.machine_check => self.write_bank(number, value),
            number::DEBUG_CONTROL => only(value & !DEBUG_IGNORED == 0),
            _ if self.has.mtrr && self.mtrrs.read(number).is_some() => self.mtrrs.write(number, value),
            _ => match self.has.maker {
                Maker::Intel => self.write_intel(number, value),
                Maker::Amd => self.write_amd(number, value),
            },
        }
    }

    /// STATUS, ADDR and MISC take 0 only, unless HWCR says otherwise (SDM Vol. 3B, 16.3.2.2; APM Vol. 2, 9.3.2).
    fn write_bank(&mut self, number: u32, value: u64) -> Option<()> {
        let is_control = number == number::BANK_0;
        if !is_control && value != 0 && self.hwcr & CHECK_STATUS_WRITABLE == 0 {
            return None;
        }
        *self.bank.get_mut(bank_index(number))? = value;
        Some(())
    }

    fn write_intel(&mut self, number: u32, value: u64) -> Option<()> {
        match number {
            number::MISC_ENABLE => {
                self.fast_strings = value & FAST_STRINGS;
                Some(())
            }
            number::P5_ADDRESS | number::P5_TYPE | number::EBL_CR_POWERON => Some(()),
            _ => None,
        }
    }

    fn write_amd(&mut self, number: u32, value: u64) -> Option<()> {
        match number {
            number::SYSCFG => self.syscfg = value & SYSCFG_WRITABLE,
            number::HWCR => self.hwcr = value & CHECK_STATUS_WRITABLE | TSC_AT_P0,
            // Locked, or firmware's: a write changes nothing.
            number::TOP_MEM
            | number::TOP_MEM2
            | number::NB_CFG
            | number::PATCH_LOADER
            | number::INT_PENDING
            | number::VM_CR
            | number::DC_CFG
            | number::DE_CFG
            | number::BU_CFG2 => (),
            number::OSVW_LENGTH | number::OSVW_STATUS if self.has.osvw => (),
            _ => return None,
        }
        Some(())
    }
}

impl Has {
    fn new(cpuid: &Table) -> Self {
        let (basic, structured) = (cpuid.fixed(1, 0), cpuid.fixed(7, 0));
        let (extended, addresses) = (cpuid.fixed(0x8000_0001, 0), cpuid.fixed(0x8000_0008, 0));
        let bit = |word: u32, bit: u32| word >> bit & 1 != 0;
        Self {
            maker: cpuid.maker(),
            mtrr: bit(basic.edx, 12),
            machine_check: bit(basic.edx, 7) && bit(basic.edx, 14),
            tsc_adjust: bit(structured.ebx, 1),
            tsc_aux: bit(extended.edx, 27) || bit(structured.ecx, 22),
            xsaves: bit(cpuid.fixed(0xd, 1).eax, 3),
            osvw: bit(extended.ecx, 9),
            umwait: bit(structured.ecx, 5),
            arch_capabilities: bit(structured.edx, 29),
            spec_ctrl: spec_ctrl(structured.edx, cpuid.fixed(7, 2).edx, addresses.ebx),
            pred_cmd: bit(structured.edx, 26) || bit(addresses.ebx, 12),
            flush_cmd: bit(structured.edx, 28),
            long_mode: bit(extended.edx, 29),
        }
    }
}

/// The bits of SPEC_CTRL, by leaf 7 and its subleaf 2 (SDM Vol. 4, table 2-2); AMD has those that it knows in leaf 8000_0008.
fn spec_ctrl(structured: u32, more: u32, amd: u32) -> u64 {
    const INTEL: [(u32, u64); 3] = [(26, 1), (27, 1 << 1), (31, 1 << 2)];
    const INTEL_MORE: [(u32, u64); 4] = [(0, 1 << 7), (1, 3 << 3), (2, 3 << 5), (4, 1 << 10)];
    const AMD: [(u32, u64); 4] = [(14, 1), (15, 1 << 1), (24, 1 << 2), (28, 1 << 7)];
    let bits = |word: u32, bits: &[(u32, u64)]| {
        bits.iter().filter(|(bit, _)| word >> bit & 1 != 0).fold(0, |all, (_, control)| all | control)
    };
    bits(structured, &INTEL) | bits(more, &INTEL_MORE) | bits(amd, &AMD)
}

const fn bank_index(number: u32) -> usize {
    (number - number::BANK_0) as usize
}
