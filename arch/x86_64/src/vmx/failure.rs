//! Why a VM entry failed, in words: the checks of the manual (SDM Vol. 3C, chapter 27) over the values that a VMCS holds.
//!
//! Pure. The CPU says only which group failed; these say which check. The first that fails is named; checks of what this
//! hypervisor never uses are left out.

use super::controls::{Capabilities, entry, exit, pin, primary, secondary};
use super::vmcs::{Field, Guarded, interruption, rights, shadow};
use crate::control::{cr0, cr4, efer};
use crate::vendor::SegmentName;

/// The values of a VMCS.
pub trait Values {
    /// A field of the guest's.
    fn field(&self, field: Field) -> u64;
    /// One that confines it.
    fn guarded(&self, field: Guarded) -> u64;
}

/// The check that failed, or that none of them did.
#[must_use]
pub fn explain(values: &dyn Values, capabilities: &Capabilities) -> &'static str {
    let state = State { values, capabilities };
    state
        .controls()
        .or_else(|| state.host())
        .or_else(|| state.control_registers())
        .or_else(|| state.segments())
        .or_else(|| state.tables())
        .or_else(|| state.activity())
        .unwrap_or("the CPU refused to run it, for a reason that none of the known checks finds")
}

/// What VM-instruction error `number` says (31.4) about an entry that did not begin.
#[must_use]
pub fn instruction_error(number: u64) -> Option<&'static str> {
    match number {
        4 => Some("VMLAUNCH was used for a VMCS that was launched"),
        5 => Some("VMRESUME was used for a VMCS that was not launched"),
        6 => Some("VMRESUME came after another VMXOFF"),
        26 => Some("an entry was blocked by a load of SS"),
        _ => None,
    }
}

const TASK_STATE_16: u64 = 3;
const TASK_STATE_32: u64 = 11;
const LOCAL_TABLE: u64 = 2;
/// RFLAGS: bit 1 is 1; bits 3, 5, 15 and 63:22 are 0.
const FLAGS_ONE: u64 = 1 << 1;
const FLAGS_ZERO: u64 = 0xffff_ffff_ffc0_8028;
const TRAP: u64 = 1 << 8;
const INTERRUPTS: u64 = 1 << 9;
const VIRTUAL_8086: u64 = 1 << 17;
/// DR7 and DEBUGCTL: bits that exist. EFER: the same.
const DEBUGCTL: u64 = 0xffc3;
const BRANCH_TRAP: u64 = 1 << 1;
const EFER: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

const fn is_canonical(address: u64) -> bool {
    address >> 47 == 0 || address >> 47 == 0x1_ffff
}

/// PAT: eight memory types, of which 2, 3 and above 7 do not exist.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Returns the words if the condition holds.
macro_rules! refuse {
    ($($condition:expr => $words:literal,)*) => {
        $(
            if $condition {
                return Some($words);
            }
        )*
    };
}

struct State<'a> {
    values: &'a dyn Values,
    capabilities: &'a Capabilities,
}

impl State<'_> {
    fn get(&self, field: Field) -> u64 {
        self.values.field(field)
    }

    fn has(&self, field: Guarded, bit: u32) -> bool {
        self.values.guarded(field) & u64::from(bit) != 0
    }

    fn is_long(&self) -> bool {
        self.has(Guarded::ENTRY_CONTROLS, entry::LONG_MODE)
    }

    fn is_virtual_8086(&self) -> bool {
        self.get(Field::GUEST_RFLAGS) & VIRTUAL_8086 != 0
    }

    /// 27.2.1: the controls.
    fn controls(&self) -> Option<&'static str> {
        let guarded = |field| self.values.guarded(field);
        let can = self.capabilities;
        refuse! {
            !can.pin.admits(guarded(Guarded::PIN_CONTROLS)) => "a pin-based control is not allowed by the CPU",
            !can.primary.admits(guarded(Guarded::PRIMARY_CONTROLS)) => "a primary control is not allowed by the CPU",
            !can.secondary.admits(guarded(Guarded::SECONDARY_CONTROLS)) =>
                "a secondary control is not allowed by the CPU",
            !can.exit.admits(guarded(Guarded::EXIT_CONTROLS)) => "a VM-exit control is not allowed by the CPU",
            !can.entry.admits(guarded(Guarded::ENTRY_CONTROLS)) => "a VM-entry control is not allowed by the CPU",
            guarded(Guarded::CR3_TARGETS) > 4 => "there are more than four CR3 targets",
        }
        let bitmaps = [
            guarded(Guarded::IO_BITMAP_A),
            guarded(Guarded::IO_BITMAP_B),
            guarded(Guarded::MSR_BITMAP),
            guarded(Guarded::VIRTUAL_APIC),
        ];
        let apic_page = self.has(Guarded::SECONDARY_CONTROLS, secondary::APIC_ACCESSES);
        let delivers = self.has(Guarded::SECONDARY_CONTROLS, secondary::VIRTUAL_INTERRUPTS);
        refuse! {
            bitmaps.iter().any(|page| page & 0xfff != 0) => "a bitmap or the virtual-APIC page is not aligned",
            apic_page && guarded(Guarded::APIC_ACCESS) & 0xfff != 0 => "the APIC-access page is not aligned",
            apic_page && self.has(Guarded::SECONDARY_CONTROLS, secondary::X2APIC) =>
                "the APIC is virtualised both as a page and as MSRs",
            delivers && !self.has(Guarded::PIN_CONTROLS, pin::EXTERNAL) =>
                "virtual interrupts are delivered, but physical ones do not exit",
            self.has(Guarded::PRIMARY_CONTROLS, primary::NMI_WINDOW)
                && !self.has(Guarded::PIN_CONTROLS, pin::VIRTUAL_NMI) => "there is an NMI window without virtual NMIs",
            !delivers && self.get(Field::TPR_THRESHOLD) & !0xf != 0 => "the TPR threshold has more than four bits",
            self.has(Guarded::SECONDARY_CONTROLS, secondary::VPID) && guarded(Guarded::VPID) == 0 =>
                "the tag of the guest's translations is 0",
            guarded(Guarded::EPT_POINTER) & 0xfbf != 0x1e => "the EPT pointer is not that of four levels in cached memory",
        }
        self.injection()
    }

    /// 27.2.1.3: the event to inject.
    fn injection(&self) -> Option<&'static str> {
        let event = self.get(Field::ENTRY_INTERRUPTION);
        if event & interruption::VALID == 0 {
            return None;
        }
        let kind = event & interruption::KIND;
        let vector = event & interruption::VECTOR;
        let has_error = event & interruption::ERROR_CODE != 0;
        let software = matches!(
            kind,
            interruption::SOFTWARE_INTERRUPT
                | interruption::PRIVILEGED_EXCEPTION
                | interruption::SOFTWARE_EXCEPTION
        );
        let length = self.get(Field::ENTRY_LENGTH);
        refuse! {
            kind == 1 << interruption::KIND_SHIFT => "the event to inject is of a reserved kind",
            kind == interruption::NMI && vector != 2 => "the NMI to inject has another vector than 2",
            kind == interruption::HARDWARE_EXCEPTION && vector > 31 => "the exception to inject has a vector above 31",
            has_error && kind != interruption::HARDWARE_EXCEPTION =>
                "the event to inject has an error code and is no exception",
            has_error && self.get(Field::GUEST_CR0) & cr0::PE == 0 =>
                "the exception to inject has an error code in real mode",
            has_error && self.get(Field::ENTRY_ERROR_CODE) & !0xffff != 0 =>
                "the error code to inject has reserved bits",
            software && !(1..=15).contains(&length) =>
                "the instruction of the software event to inject is shorter than 1 byte or longer than 15",
        }
        None
    }

    /// 27.2.2 to 27.2.4: the host's state.
    fn host(&self) -> Option<&'static str> {
        let guarded = |field| self.values.guarded(field);
        let can = self.capabilities;
        let selectors = [
            Guarded::HOST_CS,
            Guarded::HOST_SS,
            Guarded::HOST_DS,
            Guarded::HOST_ES,
            Guarded::HOST_FS,
            Guarded::HOST_GS,
            Guarded::HOST_TR,
        ];
        let addresses = [
            Guarded::HOST_FS_BASE,
            Guarded::HOST_GS_BASE,
            Guarded::HOST_TR_BASE,
            Guarded::HOST_GDTR_BASE,
            Guarded::HOST_IDTR_BASE,
            Guarded::HOST_SYSENTER_ESP,
            Guarded::HOST_SYSENTER_EIP,
            Guarded::HOST_RIP,
        ];
        let host_efer = guarded(Guarded::HOST_EFER);
        refuse! {
            !can.cr0.admits(guarded(Guarded::HOST_CR0)) => "the host's CR0 is not allowed in VMX operation",
            !can.cr4.admits(guarded(Guarded::HOST_CR4)) => "the host's CR4 is not allowed in VMX operation",
            !is_pat(guarded(Guarded::HOST_PAT)) => "the host's PAT has a memory type that does not exist",
            host_efer & !EFER != 0 => "the host's EFER has reserved bits",
            host_efer & (efer::LME | efer::LMA) != efer::LME | efer::LMA => "the host's EFER is not that of 64-bit mode",
            selectors.iter().any(|field| guarded(*field) & 7 != 0) => "a selector of the host's has privilege or is local",
            guarded(Guarded::HOST_CS) == 0 => "the host's CS is empty",
            guarded(Guarded::HOST_TR) == 0 => "the host's TR is empty",
            addresses.iter().any(|field| !is_canonical(guarded(*field))) => "an address of the host's is not canonical",
            guarded(Guarded::HOST_CR4) & cr4::PAE == 0 => "the host's CR4 is not that of 64-bit mode",
            !self.has(Guarded::EXIT_CONTROLS, exit::HOST_64) => "the host would not be in 64-bit mode",
        }
        None
    }

    /// 27.3.1.1: control registers, debug registers, MSRs.
    fn control_registers(&self) -> Option<&'static str> {
        let can = self.capabilities;
        let value = self.get(Field::GUEST_CR0);
        let paged = value & cr0::PG != 0;
        // With unrestricted guests protection and paging are free.
        let free = cr0::PE | cr0::PG;
        let must = can.cr0.ones & !free;
        let guest_cr4 = self.get(Field::GUEST_CR4);
        let guest_efer = self.get(Field::GUEST_EFER);
        let long = self.is_long();
        refuse! {
            value & must != must || value & !can.cr0.may != 0 => "its CR0 is not allowed in VMX operation",
            paged && value & cr0::PE == 0 => "its CR0 has paging without protection",
            !can.cr4.admits(guest_cr4) => "its CR4 is not allowed in VMX operation",
            self.get(Field::GUEST_DEBUGCTL) & !DEBUGCTL != 0 => "its DEBUGCTL has reserved bits",
            long && !paged => "it is in IA-32e mode without paging",
            long && guest_cr4 & cr4::PAE == 0 => "it is in IA-32e mode without PAE",
            !long && guest_cr4 & cr4::PCIDE != 0 => "it has process-context identifiers outside IA-32e mode",
            self.get(Field::GUEST_CR3) >> 52 != 0 => "its CR3 has more bits than physical addresses have",
            self.get(Field::GUEST_DR7) >> 32 != 0 => "its DR7 has bits above 31",
            !is_canonical(self.get(Field::GUEST_SYSENTER_ESP)) => "its SYSENTER_ESP is not canonical",
            !is_canonical(self.get(Field::GUEST_SYSENTER_EIP)) => "its SYSENTER_EIP is not canonical",
            !is_pat(self.get(Field::GUEST_PAT)) => "its PAT has a memory type that does not exist",
            guest_efer & !EFER != 0 => "its EFER has reserved bits",
            (guest_efer & efer::LMA != 0) != long => "its EFER.LMA is not what the entry controls say",
            paged && (guest_efer & efer::LME != 0) != long => "its EFER.LME is not EFER.LMA, with paging on",
        }
        None
    }

    /// 27.3.1.2: segment registers.
    fn segments(&self) -> Option<&'static str> {
        let selector = |name| self.get(Field::selector(name));
        let table_rights = self.get(Field::rights(SegmentName::Ldtr));
        let has_table = table_rights & rights::UNUSABLE == 0;
        refuse! {
            selector(SegmentName::Tr) & 4 != 0 => "its TR is in the local table",
            has_table && selector(SegmentName::Ldtr) & 4 != 0 => "its LDTR is in the local table",
            !is_canonical(self.get(Field::base(SegmentName::Tr))) => "the base of its TR is not canonical",
            !is_canonical(self.get(Field::base(SegmentName::Fs))) => "the base of its FS is not canonical",
            !is_canonical(self.get(Field::base(SegmentName::Gs))) => "the base of its GS is not canonical",
            has_table && !is_canonical(self.get(Field::base(SegmentName::Ldtr))) =>
                "the base of its LDTR is not canonical",
            self.get(Field::base(SegmentName::Cs)) >> 32 != 0 => "the base of its CS has more than 32 bits",
        }
        if self.is_virtual_8086() {
            return self.virtual_8086_segments();
        }
        self.code_segment().or_else(|| self.data_segments()).or_else(|| self.system_segments())
    }

    fn virtual_8086_segments(&self) -> Option<&'static str> {
        const RIGHTS: u64 = 0xf3;
        for name in SegmentName::ALL.into_iter().take(6) {
            refuse! {
                self.get(Field::base(name)) != self.get(Field::selector(name)) << 4 =>
                    "a base in virtual-8086 mode is not 16 times the selector",
                self.get(Field::limit(name)) != 0xffff => "a limit in virtual-8086 mode is not 64 KiB",
                self.get(Field::rights(name)) != RIGHTS => "access rights in virtual-8086 mode are not those of that mode",
            }
        }
        self.system_segments()
    }

    fn code_segment(&self) -> Option<&'static str> {
        let code = self.get(Field::rights(SegmentName::Cs));
        let stack = self.get(Field::rights(SegmentName::Ss));
        let privilege = |value: u64| value >> rights::PRIVILEGE_SHIFT & 3;
        let kind = code & rights::TYPE;
        let real = self.get(Field::GUEST_CR0) & cr0::PE == 0;
        refuse! {
            code & rights::UNUSABLE != 0 => "its CS is unusable",
            !matches!(kind, 3 | 9 | 11 | 13 | 15) => "its CS is no accessed code segment",
            code & rights::CODE_OR_DATA == 0 => "its CS is a system segment",
            kind == 3 && privilege(code) != 0 => "its CS is data, and has privilege",
            matches!(kind, 9 | 11) && privilege(code) != privilege(stack) => "the privileges of its CS and SS differ",
            matches!(kind, 13 | 15) && privilege(code) > privilege(stack) =>
                "its conforming CS has less privilege than its SS",
            code & rights::PRESENT == 0 => "its CS is not present",
            code & rights::RESERVED != 0 => "the access rights of its CS have reserved bits",
            self.is_long() && code & rights::LONG != 0 && code & rights::WIDE != 0 =>
                "its CS is of 64 bits and of 32 at once",
            !self.is_granular_right(SegmentName::Cs) => "the limit of its CS does not go with its granularity",
            (real || kind == 3) && privilege(stack) != 0 => "its SS has privilege in real mode",
        }
        None
    }

    fn data_segments(&self) -> Option<&'static str> {
        let stack = self.get(Field::rights(SegmentName::Ss));
        if stack & rights::UNUSABLE == 0 {
            refuse! {
                !matches!(stack & rights::TYPE, 3 | 7) => "its SS is no writable, accessed data segment",
                self.get(Field::base(SegmentName::Ss)) >> 32 != 0 => "the base of its SS has more than 32 bits",
            }
        }
        for name in [SegmentName::Ss, SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
            let value = self.get(Field::rights(name));
            if value & rights::UNUSABLE != 0 {
                continue;
            }
            refuse! {
                value & rights::CODE_OR_DATA == 0 => "a data segment of its is a system segment",
                value & 1 == 0 => "a data segment of its was not accessed",
                value & 8 != 0 && value & 2 == 0 => "a data segment of its is code that cannot be read",
                value & rights::PRESENT == 0 => "a data segment of its is not present",
                value & rights::RESERVED != 0 => "the access rights of a data segment of its have reserved bits",
                !self.is_granular_right(name) => "the limit of a data segment of its does not go with its granularity",
            }
        }
        None
    }

    fn system_segments(&self) -> Option<&'static str> {
        let task = self.get(Field::rights(SegmentName::Tr));
        let table = self.get(Field::rights(SegmentName::Ldtr));
        let kind = task & rights::TYPE;
        refuse! {
            task & rights::UNUSABLE != 0 => "its TR is unusable",
            kind != TASK_STATE_32 && (self.is_long() || kind != TASK_STATE_16) => "its TR is no busy task state segment",
            task & rights::CODE_OR_DATA != 0 => "its TR is code or data",
            task & rights::PRESENT == 0 => "its TR is not present",
            task & rights::RESERVED != 0 => "the access rights of its TR have reserved bits",
            !self.is_granular_right(SegmentName::Tr) => "the limit of its TR does not go with its granularity",
        }
        if table & rights::UNUSABLE != 0 {
            return None;
        }
        refuse! {
            table & rights::TYPE != LOCAL_TABLE => "its LDTR is no local descriptor table",
            table & rights::CODE_OR_DATA != 0 => "its LDTR is code or data",
            table & rights::PRESENT == 0 => "its LDTR is not present",
            table & rights::RESERVED != 0 => "the access rights of its LDTR have reserved bits",
            !self.is_granular_right(SegmentName::Ldtr) => "the limit of its LDTR does not go with its granularity",
        }
        None
    }

    fn is_granular_right(&self, name: SegmentName) -> bool {
        let limit = self.get(Field::limit(name));
        let granular = self.get(Field::rights(name)) & rights::GRANULAR != 0;
        if granular { limit & 0xfff == 0xfff } else { limit >> 20 == 0 }
    }

    /// 27.3.1.3 and 27.3.1.4: descriptor tables, RIP, RFLAGS.
    fn tables(&self) -> Option<&'static str> {
        let flags = self.get(Field::GUEST_RFLAGS);
        let rip = self.get(Field::GUEST_RIP);
        let wide_code = self.is_long() && self.get(Field::rights(SegmentName::Cs)) & rights::LONG != 0;
        let event = self.get(Field::ENTRY_INTERRUPTION);
        let injects_interrupt =
            event & interruption::VALID != 0 && event & interruption::KIND == interruption::EXTERNAL;
        refuse! {
            !is_canonical(self.get(Field::GUEST_GDTR_BASE)) => "the base of its GDTR is not canonical",
            !is_canonical(self.get(Field::GUEST_IDTR_BASE)) => "the base of its IDTR is not canonical",
            self.get(Field::GUEST_GDTR_LIMIT) >> 16 != 0 => "the limit of its GDTR has more than 16 bits",
            self.get(Field::GUEST_IDTR_LIMIT) >> 16 != 0 => "the limit of its IDTR has more than 16 bits",
            !wide_code && rip >> 32 != 0 => "its RIP has more than 32 bits outside 64-bit code",
            wide_code && !is_canonical(rip) => "its RIP is not canonical",
            flags & FLAGS_ONE == 0 || flags & FLAGS_ZERO != 0 => "its RFLAGS has reserved bits",
            self.is_virtual_8086() && (self.is_long() || self.get(Field::GUEST_CR0) & cr0::PE == 0) =>
                "its RFLAGS says virtual-8086 mode in a mode that has none",
            injects_interrupt && flags & INTERRUPTS == 0 => "an interrupt is injected while its RFLAGS.IF is clear",
        }
        None
    }

    /// 27.3.1.5 and 27.3.1.6: what is not in registers.
    fn activity(&self) -> Option<&'static str> {
        const ACTIVE: u64 = 0;
        const STEP: u64 = 1 << 14;
        let blocked = self.get(Field::GUEST_INTERRUPTIBILITY);
        let held = blocked & (shadow::STI | shadow::MOV_SS);
        let flags = self.get(Field::GUEST_RFLAGS);
        let event = self.get(Field::ENTRY_INTERRUPTION);
        let injects = |kind: u64| event & interruption::VALID != 0 && event & interruption::KIND == kind;
        let pending_step = self.get(Field::GUEST_PENDING_DEBUG) & STEP != 0;
        let steps = flags & TRAP != 0 && self.get(Field::GUEST_DEBUGCTL) & BRANCH_TRAP == 0;
        let pae = self.get(Field::GUEST_CR0) & cr0::PG != 0
            && self.get(Field::GUEST_CR4) & cr4::PAE != 0
            && !self.is_long();
        let pointers =
            [Field::GUEST_PDPTE_0, Field::GUEST_PDPTE_1, Field::GUEST_PDPTE_2, Field::GUEST_PDPTE_3];
        refuse! {
            self.get(Field::GUEST_ACTIVITY) > 3 => "its activity state does not exist",
            self.get(Field::GUEST_ACTIVITY) != ACTIVE && held != 0 => "it is halted behind STI or a load of SS",
            blocked & !0x1f != 0 => "its interruptibility has reserved bits",
            held == shadow::STI | shadow::MOV_SS => "it is behind both STI and a load of SS",
            held & shadow::STI != 0 && flags & INTERRUPTS == 0 => "it is behind STI while its RFLAGS.IF is clear",
            injects(interruption::EXTERNAL) && held != 0 => "an interrupt is injected behind STI or a load of SS",
            injects(interruption::NMI) && blocked & shadow::MOV_SS != 0 => "an NMI is injected behind a load of SS",
            injects(interruption::NMI) && blocked & shadow::NMI != 0 => "an NMI is injected while it handles one",
            blocked & shadow::SMI != 0 => "it is blocked by system management",
            held != 0 && steps && !pending_step => "it steps behind STI or a load of SS with no step pending",
            held != 0 && !steps && pending_step => "a step is pending though it does not step",
            self.values.guarded(Guarded::LINK_POINTER) != u64::MAX => "the VMCS link pointer leads somewhere",
            pae && pointers.iter().any(|field| self.get(*field) & 1 != 0 && self.get(*field) & 0xfff0_0000_0000_01e6 != 0) =>
                "a page-directory pointer of its has reserved bits",
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::controls::Controls;
    use crate::vmx::controls::tests::{capabilities, skylake};
    use crate::vmx::vmcs::Encoded;
    use std::collections::HashMap;

    struct Written(HashMap<u32, u64>);

    impl Values for Written {
        fn field(&self, field: Field) -> u64 {
            self.0.get(&field.encoding()).copied().unwrap_or(0)
        }

        fn guarded(&self, field: Guarded) -> u64 {
            self.0.get(&field.encoding()).copied().unwrap_or(0)
        }
    }

    impl Written {
        fn set(&mut self, field: impl Encoded, value: u64) {
            self.0.insert(field.encoding(), value);
        }
    }

    /// A guest in real mode that the CPU would run.
    fn sound() -> Written {
        let controls = Controls::choose(&capabilities(&skylake())).unwrap();
        let mut written = Written(HashMap::new());
        written.set(Guarded::PIN_CONTROLS, controls.pin.into());
        written.set(Guarded::PRIMARY_CONTROLS, controls.primary.into());
        written.set(Guarded::SECONDARY_CONTROLS, controls.secondary.into());
        written.set(Guarded::EXIT_CONTROLS, controls.exit.into());
        written.set(Guarded::ENTRY_CONTROLS, controls.entry.into());
        written.set(Guarded::VPID, 1);
        written.set(Guarded::EPT_POINTER, 0x701e);
        written.set(Guarded::LINK_POINTER, u64::MAX);
        written.set(Guarded::HOST_CR0, 0x8001_0033);
        written.set(Guarded::HOST_CR4, 0x2020);
        written.set(Guarded::HOST_EFER, 0xd00);
        written.set(Guarded::HOST_CS, 8);
        written.set(Guarded::HOST_TR, 0x18);
        written.set(Field::GUEST_CR0, 0x20);
        written.set(Field::GUEST_CR4, 0x2000);
        written.set(Field::GUEST_RFLAGS, 2);
        for name in SegmentName::ALL {
            written.set(Field::limit(name), 0xffff);
            written.set(Field::rights(name), 0x93);
        }
        written.set(Field::rights(SegmentName::Cs), 0x9b);
        written.set(Field::rights(SegmentName::Ldtr), 0x82);
        written.set(Field::rights(SegmentName::Tr), 0x83);
        written
    }

    fn words(change: impl FnOnce(&mut Written)) -> &'static str {
        let mut written = sound();
        change(&mut written);
        explain(&written, &capabilities(&skylake()))
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(
            words(|_| ()),
            "the CPU refused to run it, for a reason that none of the known checks finds"
        );
    }

    #[test]
    fn each_wrong_field_is_found_by_name() {
        assert_eq!(
            words(|vmcs| vmcs.set(Field::rights(SegmentName::Tr), 0x89)),
            "its TR is no busy task state segment"
        );
        assert_eq!(words(|vmcs| vmcs.set(Field::GUEST_RFLAGS, 0)), "its RFLAGS has reserved bits");
        assert_eq!(
            words(|vmcs| vmcs.set(Field::GUEST_CR0, 0x8000_0020)),
            "its CR0 has paging without protection"
        );
        assert_eq!(words(|vmcs| vmcs.set(Field::GUEST_CR4, 0)), "its CR4 is not allowed in VMX operation");
        assert_eq!(
            words(|vmcs| vmcs.set(Field::GUEST_EFER, 0x500)),
            "its EFER.LMA is not what the entry controls say"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Field::rights(SegmentName::Cs), 0x93 | 1 << 5)),
            "its CS is data, and has privilege"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Field::limit(SegmentName::Ds), 0x10_0000)),
            "the limit of a data segment of its does not go with its granularity"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Field::GUEST_RIP, 1 << 32)),
            "its RIP has more than 32 bits outside 64-bit code"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Field::ENTRY_INTERRUPTION, 0x8000_0030)),
            "an interrupt is injected while its RFLAGS.IF is clear"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Field::ENTRY_INTERRUPTION, 0x8000_0b0d)),
            "the exception to inject has an error code in real mode"
        );
        assert_eq!(
            words(|vmcs| vmcs.set(Guarded::HOST_RIP, 1 << 47)),
            "an address of the host's is not canonical"
        );
        assert_eq!(words(|vmcs| vmcs.set(Guarded::VPID, 0)), "the tag of the guest's translations is 0");
        assert_eq!(
            words(|vmcs| vmcs.set(Guarded::PIN_CONTROLS, 0)),
            "a pin-based control is not allowed by the CPU"
        );
    }
}
