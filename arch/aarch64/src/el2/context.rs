//! A guest's registers, out of the CPU and back. They stay in the CPU as long as the same vCPU goes on.

use crate::hw::enable::Facts;
use crate::hw::*;

/// CNTx_CTL_EL0: enabled and not masked.
const TIMER_ARMED: u64 = 0b01;
const TIMER_CONTROL: u64 = 0b11;
/// `SCTLR_EL1` after reset: its RES1 bits, everything off (Arm ARM D24.2.166).
const SCTLR_RESET: u64 = 0x30d0_0800;
/// EL1h, all interrupts masked.
const PSTATE_RESET: u64 = 0x3c5;
/// OSLSR_EL1.OSLK and what OSLAR_EL1 takes.
const OS_LOCKED: u64 = 1 << 1;

/// Declares a group of registers that move together; `banked` ones have two names, of which `vhe` chooses.
macro_rules! group {
    ($(#[$doc:meta])* banked $name:ident { $($field:ident = $register:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default)]
        struct $name { $($field: u64,)* }

        impl $name {
            fn save(vhe: bool) -> Self {
                Self { $($field: $register::read(vhe),)* }
            }

            fn load(&self, vhe: bool) {
                $($register::write(vhe, self.$field);)*
            }
        }
    };
    ($(#[$doc:meta])* plain $name:ident { $($field:ident = $register:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default)]
        struct $name { $($field: u64,)* }

        impl $name {
            fn save() -> Self {
                Self { $($field: $register::read(),)* }
            }

            fn load(&self) {
                $($register::write(self.$field);)*
            }
        }
    };
}

group! {
    /// Registers of EL1 that EL2 may know under another name.
    banked Banked {
        sctlr = SCTLR_EL1, cpacr = CPACR_EL1, ttbr0 = TTBR0_EL1, ttbr1 = TTBR1_EL1, tcr = TCR_EL1, afsr0 = AFSR0_EL1,
        afsr1 = AFSR1_EL1, esr = ESR_EL1, far = FAR_EL1, mair = MAIR_EL1, amair = AMAIR_EL1, vbar = VBAR_EL1,
        contextidr = CONTEXTIDR_EL1, cntkctl = CNTKCTL_EL1, elr = ELR_EL1, spsr = SPSR_EL1,
    }
}

group! {
    /// Registers of EL1 and EL0 with one name.
    plain Plain {
        elr_el2 = ELR_EL2, sp_el0 = SP_EL0, sp_el1 = SP_EL1, tpidr_el0 = TPIDR_EL0, tpidrro_el0 = TPIDRRO_EL0,
        tpidr_el1 = TPIDR_EL1, par = PAR_EL1, csselr = CSSELR_EL1, mdscr = MDSCR_EL1, fpcr = FPCR, fpsr = FPSR, vmcr = ICH_VMCR_EL2,
    }
}

group! {
    /// Keys of pointer authentication.
    plain Keys {
        ia_low = APIAKEYLO_EL1, ia_high = APIAKEYHI_EL1, ib_low = APIBKEYLO_EL1, ib_high = APIBKEYHI_EL1,
        da_low = APDAKEYLO_EL1, da_high = APDAKEYHI_EL1, db_low = APDBKEYLO_EL1, db_high = APDBKEYHI_EL1,
        ga_low = APGAKEYLO_EL1, ga_high = APGAKEYHI_EL1,
    }
}

group! {
    /// The guest's two timers.
    banked Timers {
        physical_control = CNTP_CTL_EL0, physical_at = CNTP_CVAL_EL0,
        virtual_control = CNTV_CTL_EL0, virtual_at = CNTV_CVAL_EL0,
    }
}

/// Hardware breakpoints and watchpoints, and the OS lock.
#[derive(Clone, Copy, Default)]
struct Debug {
    breakpoints: [[u64; 2]; 16],
    watchpoints: [[u64; 2]; 16],
    is_locked: bool,
}

/// A guest's registers while it is not in the CPU; x0 to x30 are elsewhere.
#[derive(Clone)]
pub(super) struct Context {
    banked: Banked,
    plain: Plain,
    pstate: u64,
    keys: Keys,
    timers: Timers,
    debug: Debug,
    zcr: u64,
    /// What the guest's `DISR_EL1` is while its errors are virtual ones (`HCR_EL2.AMO`).
    deferred_error: u64,
    active_priorities: [[u64; 4]; 2],
    simd: [u128; 32],
    /// Vectors and predicates; empty without SVE.
    sve: alloc::vec::Vec<u8>,
}

impl Context {
    /// All zero. Allocates: boot only.
    pub(super) fn new(facts: &Facts) -> Self {
        // 32 vectors, and 17 predicates with a bit for each byte of a vector.
        let sve_bytes = 32 * facts.vector_bytes + 17 * facts.vector_bytes / 8;
        Self {
            banked: Banked::default(),
            plain: Plain::default(),
            pstate: PSTATE_RESET,
            keys: Keys::default(),
            timers: Timers::default(),
            debug: Debug::default(),
            zcr: 0,
            deferred_error: 0,
            active_priorities: [[0; 4]; 2],
            simd: [0; 32],
            sve: alloc::vec![0; sve_bytes],
        }
    }

    /// As after reset, about to execute `pc`.
    pub(super) fn reset(&mut self, pc: u64) {
        self.banked = Banked { sctlr: SCTLR_RESET, ..Banked::default() };
        self.plain = Plain { elr_el2: pc, ..Plain::default() };
        self.pstate = PSTATE_RESET;
        self.keys = Keys::default();
        self.timers = Timers::default();
        self.debug = Debug { is_locked: true, ..Debug::default() };
        self.zcr = 0;
        self.deferred_error = 0;
        self.active_priorities = [[0; 4]; 2];
        self.simd = [0; 32];
        self.sve.fill(0);
    }

    /// Into the CPU.
    pub(super) fn load(&self, facts: &Facts) {
        self.banked.load(facts.vhe);
        self.plain.load();
        set_guest_pstate(self.pstate);
        if facts.pointer_keys {
            self.keys.load();
        }
        if facts.vector_bytes > 0 {
            ZCR_EL1::write(facts.vhe, self.zcr);
            load_sve(&self.sve, facts.vector_bytes);
        } else {
            load_simd(&self.simd);
        }
        if facts.deferred_errors {
            VDISR_EL2::write(self.deferred_error);
        }
        let [group0, group1] = &self.active_priorities;
        for number in 0..facts.active_priorities.min(4) {
            ICH_AP0R_EL2::write(number, group0[number]);
            ICH_AP1R_EL2::write(number, group1[number]);
        }
        self.load_debug(facts);
        // Last: from here on they may fire.
        self.timers.load(facts.vhe);
    }

    /// The timers that are in the CPU fire no more.
    pub(super) fn silence(facts: &Facts) {
        CNTP_CTL_EL0::write(facts.vhe, 0);
        CNTV_CTL_EL0::write(facts.vhe, 0);
    }

    /// Out of the CPU; the timers there are silent afterwards.
    pub(super) fn save(&mut self, facts: &Facts) {
        self.timers = Timers::save(facts.vhe);
        Self::silence(facts);
        self.banked = Banked::save(facts.vhe);
        self.plain = Plain::save();
        self.pstate = SPSR_EL2::read();
        if facts.pointer_keys {
            self.keys = Keys::save();
        }
        if facts.vector_bytes > 0 {
            self.zcr = ZCR_EL1::read(facts.vhe);
            save_sve(&mut self.sve, facts.vector_bytes);
        } else {
            save_simd(&mut self.simd);
        }
        if facts.deferred_errors {
            self.deferred_error = VDISR_EL2::read();
        }
        let [group0, group1] = &mut self.active_priorities;
        for number in 0..facts.active_priorities.min(4) {
            group0[number] = ICH_AP0R_EL2::read(number);
            group1[number] = ICH_AP1R_EL2::read(number);
        }
        self.save_debug(facts);
    }

    fn load_debug(&self, facts: &Facts) {
        for (number, [value, control]) in self.debug.breakpoints.iter().enumerate().take(facts.breakpoints) {
            DBGBVR_EL1::write(number, *value);
            DBGBCR_EL1::write(number, *control);
        }
        for (number, [value, control]) in self.debug.watchpoints.iter().enumerate().take(facts.watchpoints) {
            DBGWVR_EL1::write(number, *value);
            DBGWCR_EL1::write(number, *control);
        }
        OSLAR_EL1::write(self.debug.is_locked.into());
    }

    fn save_debug(&mut self, facts: &Facts) {
        for (number, pair) in self.debug.breakpoints.iter_mut().enumerate().take(facts.breakpoints) {
            *pair = [DBGBVR_EL1::read(number), DBGBCR_EL1::read(number)];
        }
        for (number, pair) in self.debug.watchpoints.iter_mut().enumerate().take(facts.watchpoints) {
            *pair = [DBGWVR_EL1::read(number), DBGWCR_EL1::read(number)];
        }
        self.debug.is_locked = OSLSR_EL1::read() & OS_LOCKED != 0;
    }

    /// When the first of the saved timers fires.
    pub(super) fn alarm(&self) -> Option<u64> {
        let timers = &self.timers;
        [(timers.physical_control, timers.physical_at), (timers.virtual_control, timers.virtual_at)]
            .into_iter()
            .filter(|(control, _)| control & TIMER_CONTROL == TIMER_ARMED)
            .map(|(_, at)| at)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        vhe: false,
        vector_bytes: 0,
        pointer_keys: true,
        deferred_errors: true,
        aarch32: false,
        address_bits: 40,
        breakpoints: 6,
        watchpoints: 4,
        list_registers: 4,
        active_priorities: 1,
        traps_deactivation: true,
    };

    /// A register that a guest reaches, by its two functions.
    type Register = (&'static str, fn(u64), fn() -> u64);

    const REGISTERS: [Register; 7] = [
        ("DISR_EL1", VDISR_EL2::write, VDISR_EL2::read),
        ("PAR_EL1", PAR_EL1::write, PAR_EL1::read),
        ("APGAKeyHi_EL1", APGAKEYHI_EL1::write, APGAKEYHI_EL1::read),
        ("DBGBVR5_EL1", |value| DBGBVR_EL1::write(5, value), || DBGBVR_EL1::read(5)),
        ("DBGWCR3_EL1", |value| DBGWCR_EL1::write(3, value), || DBGWCR_EL1::read(3)),
        ("CNTV_CVAL_EL0", |value| CNTV_CVAL_EL0::write(false, value), || CNTV_CVAL_EL0::read(false)),
        ("AFSR1_EL1", |value| AFSR1_EL1::write(false, value), || AFSR1_EL1::read(false)),
    ];

    #[test]
    fn a_vcpu_finds_its_own_registers_and_nothing_of_anothers() {
        let [mut first, mut second] = [Context::new(&FACTS), Context::new(&FACTS)];
        first.reset(0);
        second.reset(0);
        first.load(&FACTS);
        REGISTERS.iter().for_each(|(_, write, _)| write(0x5a));
        first.save(&FACTS);
        second.load(&FACTS);
        REGISTERS.iter().for_each(|(name, _, read)| assert_eq!(read(), 0, "{name}"));
        second.save(&FACTS);
        first.load(&FACTS);
        REGISTERS.iter().for_each(|(name, _, read)| assert_eq!(read(), 0x5a, "{name}"));
    }
}
