//! What a VM exit means, in no vendor's words (SDM Vol. 3C, 28.2). Pure: it reads fields through a function.

use super::vmcs::{Field, interruption, reason};
use crate::hw::Alarm;
use crate::vendor::{
    ControlAccess, Delivery, DeliveryKind, Event, MemoryAccess, PortAccess, TaskSwitch, TaskSwitchSource,
};
use bulkhead_vdev::{Gpa, Width};

/// Where a page stands for the APIC.
pub const APIC_PAGE: Gpa = Gpa(0xfee0_0000);

const DEBUG_EXCEPTION: u8 = 1;
const MACHINE_CHECK: u8 = 18;

/// What ended a guest's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// As the shared layer has it.
    Event(Event),
    /// A debug exception with these bits for DR6.
    Debug(u64),
    /// The CPU refused the guest's state.
    BadState,
}

/// The bits of a guest's numbers that fit.
macro_rules! low {
    ($value:expr, $type:ty) => {{
        let mut bytes = [0; size_of::<$type>()];
        bytes.copy_from_slice(&$value.to_le_bytes()[..size_of::<$type>()]);
        <$type>::from_le_bytes(bytes)
    }};
}

/// Decodes the last exit, whose EXIT_REASON was `why`.
#[inline(always)]
pub fn decode(why: u64, read: impl Fn(Field) -> u64) -> Decoded {
    if why & reason::ENTRY_FAILED != 0 {
        return not_entered(low!(why, u16));
    }
    let event = match low!(why, u16) {
        reason::CPUID => Event::Cpuid,
        reason::HLT => Event::Halt,
        reason::VMCALL => Event::Hypercall,
        reason::RDMSR => Event::ReadMsr,
        reason::WRMSR => Event::WriteMsr,
        reason::IO => Event::Port(port(read(Field::QUALIFICATION))),
        reason::EPT_VIOLATION => {
            Event::Memory(violation(read(Field::QUALIFICATION), read(Field::GUEST_PHYSICAL)))
        }
        reason::INTERRUPT => Event::Interrupt(Some(low!(read(Field::EXIT_INTERRUPTION), u8))),
        reason::PREEMPTION_TIMER => Event::Deadline,
        reason::INTERRUPT_WINDOW | reason::NMI_WINDOW | reason::TPR_BELOW_THRESHOLD => Event::Window,
        reason::APIC_WRITE => Event::PageWrite(low!(read(Field::QUALIFICATION) >> 4 & 0xff, u16)),
        reason::VIRTUALIZED_EOI => Event::PageEnd(low!(read(Field::QUALIFICATION), u8)),
        reason::APIC_ACCESS => Event::Memory(apic_access(read(Field::QUALIFICATION))),
        reason::CONTROL_REGISTER => Event::Control(control(read(Field::QUALIFICATION))),
        reason::XSETBV => Event::Xsetbv,
        reason::INVD | reason::WBINVD => Event::CacheFlush,
        reason::RDPMC => Event::ReadCounter,
        reason::EXCEPTION => return exception(read),
        reason::TRIPLE_FAULT => Event::Shutdown,
        reason::TASK_SWITCH => Event::TaskSwitch(task_switch(read(Field::QUALIFICATION))),
        reason::INIT | reason::SIPI => Event::Host,
        reason::EPT_MISCONFIGURATION => {
            Event::Refused("an entry of its second stage means nothing to the CPU")
        }
        reason::GETSEC
        | reason::RSM
        | reason::VMCLEAR..=reason::VMXON
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        | reason::ENCLS
        | reason::MWAIT
        | reason::MONITOR => Event::Forbidden,
        _ => Event::Refused("it exited for a reason that nobody asked for"),
    };
    Decoded::Event(event)
}

/// Why a guest was not entered: by its own state, or by the machine's (27.9).
#[cold]
const fn not_entered(why: u16) -> Decoded {
    match why {
        reason::MACHINE_CHECK => Decoded::Event(Event::Alarm(Alarm::MachineCheck)),
        _ => Decoded::BadState,
    }
}

/// Whether EXIT_LENGTH holds the length of the instruction that exited (28.2.5).
pub const fn has_length(why: u64) -> bool {
    matches!(
        (why & 0xffff) as u16,
        reason::TASK_SWITCH..=reason::IO
            | reason::RDMSR
            | reason::WRMSR
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID..=reason::XSETBV
    )
}

fn exception(read: impl Fn(Field) -> u64) -> Decoded {
    let what = read(Field::EXIT_INTERRUPTION);
    if what & interruption::KIND == interruption::NMI {
        return Decoded::Event(Event::Alarm(Alarm::NonMaskable));
    }
    let vector = low!(what, u8);
    if vector == MACHINE_CHECK {
        return Decoded::Event(Event::Alarm(Alarm::MachineCheck));
    }
    // INT1 exits before it is executed, and tells nothing for DR6.
    if what & interruption::KIND == interruption::PRIVILEGED_EXCEPTION {
        let length = low!(read(Field::EXIT_LENGTH), u8);
        let kind = DeliveryKind::PrivilegedException;
        return Decoded::Event(Event::Exception(Delivery { kind, vector, error: None, length }));
    }
    if vector == DEBUG_EXCEPTION {
        return Decoded::Debug(read(Field::QUALIFICATION));
    }
    let error = (what & interruption::ERROR_CODE != 0).then(|| low!(read(Field::EXIT_ERROR_CODE), u32));
    Decoded::Event(Event::Exception(Delivery::exception(vector, error)))
}

const fn width(bytes_less_one: u64) -> Width {
    match bytes_less_one & 7 {
        0 => Width::Byte,
        1 => Width::Half,
        _ => Width::Word,
    }
}

/// Table 28-5.
#[inline(always)]
pub fn port(qualification: u64) -> PortAccess {
    let write = if qualification & 1 << 3 == 0 { PortAccess::WRITE } else { 0 };
    let string = if qualification & 1 << 4 != 0 { PortAccess::STRING } else { 0 };
    PortAccess::new(low!(qualification >> 16, u16), width(qualification), write | string)
}

/// Table 28-7.
fn violation(qualification: u64, at: u64) -> MemoryAccess {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 2;
    const HAS_LINEAR: u64 = 1 << 7;
    const IS_TRANSLATED: u64 = 1 << 8;
    MemoryAccess {
        at: Gpa(at),
        is_write: qualification & WRITE != 0,
        is_fetch: qualification & FETCH != 0,
        is_walk: qualification & HAS_LINEAR != 0 && qualification & IS_TRANSLATED == 0,
    }
}

/// Table 28-6.
fn apic_access(qualification: u64) -> MemoryAccess {
    const WRITE: u64 = 1;
    const FETCH: u64 = 2;
    let kind = qualification >> 12 & 0xf;
    MemoryAccess {
        at: Gpa(APIC_PAGE.0 | qualification & 0xfff),
        is_write: kind == WRITE,
        is_fetch: kind == FETCH,
        is_walk: kind > FETCH,
    }
}

/// Table 28-3.
fn control(qualification: u64) -> ControlAccess {
    let control = low!(qualification & 0xf, u8);
    let register = low!(qualification >> 8 & 0xf, u8);
    match qualification >> 4 & 3 {
        0 => ControlAccess::Write { control, register },
        1 => ControlAccess::Read { control, register },
        2 => ControlAccess::ClearTaskSwitched,
        _ => ControlAccess::LoadStatusWord(low!(qualification >> 16, u16)),
    }
}

/// Table 28-2.
fn task_switch(qualification: u64) -> TaskSwitch {
    let source = match qualification >> 30 & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Return,
        2 => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::Gate,
    };
    TaskSwitch { selector: low!(qualification, u16), source }
}

/// The event that was being delivered when the guest exited, so that it has to be delivered again (28.2.4).
#[inline]
pub fn interrupted(vectoring: u64, read: impl Fn(Field) -> u64) -> Option<Delivery> {
    if vectoring & interruption::VALID == 0 {
        return None;
    }
    let kind = match vectoring & interruption::KIND {
        interruption::EXTERNAL => DeliveryKind::External,
        interruption::NMI => DeliveryKind::Nmi,
        interruption::SOFTWARE_INTERRUPT => DeliveryKind::SoftwareInterrupt,
        interruption::PRIVILEGED_EXCEPTION => DeliveryKind::PrivilegedException,
        interruption::SOFTWARE_EXCEPTION => DeliveryKind::SoftwareException,
        _ => DeliveryKind::Exception,
    };
    let software = matches!(
        kind,
        DeliveryKind::SoftwareInterrupt | DeliveryKind::PrivilegedException | DeliveryKind::SoftwareException
    );
    let error =
        (vectoring & interruption::ERROR_CODE != 0).then(|| low!(read(Field::VECTORING_ERROR_CODE), u32));
    let length = if software { low!(read(Field::EXIT_LENGTH), u8) } else { 0 };
    Some(Delivery { kind, vector: low!(vectoring, u8), error, length })
}

/// A delivery as the CPU wants it.
#[must_use]
pub fn injection(delivery: Delivery) -> u64 {
    let kind = match delivery.kind {
        DeliveryKind::External => interruption::EXTERNAL,
        DeliveryKind::Nmi => interruption::NMI,
        DeliveryKind::Exception => interruption::HARDWARE_EXCEPTION,
        DeliveryKind::SoftwareInterrupt => interruption::SOFTWARE_INTERRUPT,
        DeliveryKind::SoftwareException => interruption::SOFTWARE_EXCEPTION,
        DeliveryKind::PrivilegedException => interruption::PRIVILEGED_EXCEPTION,
    };
    let error = if delivery.error.is_some() { interruption::ERROR_CODE } else { 0 };
    interruption::VALID | kind | error | u64::from(delivery.vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(fields: &[(Field, u64)]) -> Decoded {
        let read = |field| fields.iter().find(|(name, _)| *name == field).map_or(0, |(_, value)| *value);
        decode(read(Field::EXIT_REASON), read)
    }

    fn event(why: u16, qualification: u64) -> Event {
        match exit(&[(Field::EXIT_REASON, why.into()), (Field::QUALIFICATION, qualification)]) {
            Decoded::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_out_to_com1_is_a_byte_written() {
        let access = PortAccess::new(0x3f8, Width::Byte, PortAccess::WRITE);
        assert_eq!(event(reason::IO, 0x03f8_0000), Event::Port(access));
    }

    #[test]
    fn a_string_input_of_words_says_so() {
        let access = PortAccess::new(0x1f0, Width::Half, PortAccess::STRING);
        assert_eq!(event(reason::IO, 0x01f0_0039), Event::Port(access));
    }

    #[test]
    fn a_violation_tells_walks_from_accesses() {
        let fields = |qualification| {
            [
                (Field::EXIT_REASON, u64::from(reason::EPT_VIOLATION)),
                (Field::QUALIFICATION, qualification),
                (Field::GUEST_PHYSICAL, 0xfec0_0010),
            ]
        };
        let at = Gpa(0xfec0_0010);
        let read = MemoryAccess { at, is_write: false, is_fetch: false, is_walk: false };
        assert_eq!(exit(&fields(0x181)), Decoded::Event(Event::Memory(read)));
        let walk = MemoryAccess { is_walk: true, is_write: true, ..read };
        assert_eq!(exit(&fields(0x083)), Decoded::Event(Event::Memory(walk)));
    }

    #[test]
    fn control_accesses_name_both_registers() {
        assert_eq!(
            event(reason::CONTROL_REGISTER, 0x0304),
            Event::Control(ControlAccess::Write { control: 4, register: 3 })
        );
        assert_eq!(event(reason::CONTROL_REGISTER, 0x20), Event::Control(ControlAccess::ClearTaskSwitched));
        assert_eq!(
            event(reason::CONTROL_REGISTER, 0x1_0030),
            Event::Control(ControlAccess::LoadStatusWord(1))
        );
    }

    #[test]
    fn vmx_instructions_are_forbidden() {
        for why in [18 + 1, 20, 27, 50, 53, 59, 11] {
            assert_eq!(event(why, 0), Event::Forbidden, "{why}");
        }
    }

    #[test]
    fn an_entry_that_failed_is_no_exit() {
        assert_eq!(exit(&[(Field::EXIT_REASON, 0x8000_0021)]), Decoded::BadState);
    }

    #[test]
    fn what_the_machine_tells_is_an_alarm() {
        let exception = |what| exit(&[(Field::EXIT_INTERRUPTION, what)]);
        let machine_check = Decoded::Event(Event::Alarm(Alarm::MachineCheck));
        assert_eq!(exception(0x8000_0202), Decoded::Event(Event::Alarm(Alarm::NonMaskable)));
        assert_eq!(exception(0x8000_0312), machine_check);
        assert_eq!(exit(&[(Field::EXIT_REASON, 0x8000_0029)]), machine_check, "on the way into the guest");
    }

    #[test]
    fn what_was_interrupted_is_injected_again() {
        let page_fault =
            interrupted(0x8000_0b0e, |field| if field == Field::VECTORING_ERROR_CODE { 2 } else { 0 })
                .unwrap();
        assert_eq!(page_fault, Delivery::exception(14, Some(2)));
        assert_eq!(injection(page_fault), 0x8000_0b0e);
        let software = interrupted(0x8000_0480, |field| u64::from(field == Field::EXIT_LENGTH) * 2).unwrap();
        assert_eq!((software.kind, software.length), (DeliveryKind::SoftwareInterrupt, 2));
        assert_eq!(interrupted(0x0000_0b0e, |_| 0), None);
    }

    #[test]
    fn int1_is_delivered_as_the_instruction_that_it_is() {
        let fields = [
            (Field::EXIT_REASON, u64::from(reason::EXCEPTION)),
            (Field::EXIT_INTERRUPTION, 0x8000_0501),
            (Field::EXIT_LENGTH, 1),
        ];
        let Decoded::Event(Event::Exception(delivery)) = exit(&fields) else { panic!("no exception") };
        assert_eq!((delivery.kind, delivery.length), (DeliveryKind::PrivilegedException, 1));
        assert_eq!(injection(delivery), 0x8000_0501);
        let breakpoint = [fields[0], (Field::EXIT_INTERRUPTION, 0x8000_0301), (Field::QUALIFICATION, 1)];
        assert_eq!(exit(&breakpoint), Decoded::Debug(1));
    }

    #[test]
    fn lengths_are_believed_only_where_the_manual_promises_them() {
        assert!(has_length(reason::CPUID.into()) && has_length(reason::XSETBV.into()));
        assert!(!has_length(reason::EPT_VIOLATION.into()) && !has_length(reason::APIC_ACCESS.into()));
        assert!(!has_length(reason::INTERRUPT.into()) && !has_length(reason::PREEMPTION_TIMER.into()));
    }
}
