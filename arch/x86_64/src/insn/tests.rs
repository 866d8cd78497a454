//! The two decoders against each other, and forms whose reading is easily mistaken.

use super::*;
use proptest::prelude::*;

const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

/// The opcodes that are decoded quickly.
const QUICK: [&[u8]; 8] =
    [&[0x88], &[0x89], &[0x8a], &[0x8b], &[0xc6], &[0xc7], &[0x0f, 0xb6], &[0x0f, 0xb7]];

fn operation(bytes: &[u8], size: CodeSize) -> Operation {
    let instruction = decode(bytes, size).unwrap();
    assert_eq!(usize::from(instruction.length), bytes.len(), "{bytes:02x?}");
    instruction.operation
}

fn register(number: u8, width: Width) -> Register {
    Register { number, width, high: false }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn what_is_decoded_quickly_is_what_iced_decodes(
        rex in prop_oneof![Just(None), (0x40u8..0x50).prop_map(Some)],
        opcode in prop::sample::select(&QUICK[..]),
        rest in prop::array::uniform11(any::<u8>()),
        len in 2usize..15,
    ) {
        let mut bytes: Vec<u8> = rex.into_iter().chain(opcode.iter().copied()).chain(rest).collect();
        bytes.truncate(len);
        for size in SIZES {
            if let Some(quick) = quick::decode(&bytes, size) {
                prop_assert_eq!(Ok(quick), iced::decode(&bytes, size), "{:02x?}", bytes);
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
        for size in SIZES {
            let quick = quick::decode(&bytes, size);
            let slow = iced::decode(&bytes, size);
            prop_assert!(quick.is_none() || quick == slow.ok());
            if let Ok(instruction) = slow {
                prop_assert!(instruction.length >= 1 && usize::from(instruction.length) <= bytes.len());
            }
        }
    }
}

#[test]
fn drivers_moves_are_decoded_quickly() {
    let forms: [&[u8]; 6] = [
        &[0x8b, 0x04, 0x25, 0x20, 0xb0, 0x5f, 0xff],
        &[0x89, 0xb7, 0x00, 0xb0, 0x5f, 0xff],
        &[0xc7, 0x00, 1, 0, 0, 0],
        &[0x48, 0x8b, 0x05, 1, 2, 3, 4],
        &[0x0f, 0xb6, 0x00],
        &[0x44, 0x88, 0x24, 0x18],
    ];
    for bytes in forms {
        assert!(quick::decode(bytes, CodeSize::Bits64).is_some(), "{bytes:02x?}");
    }
}

#[test]
fn an_instruction_that_goes_on_is_too_short() {
    assert_eq!(decode(&[0x8b], CodeSize::Bits64), Err(DecodeError::TooShort));
    assert_eq!(decode(&[0x66, 0xc7, 0x00, 0x01], CodeSize::Bits32), Err(DecodeError::TooShort));
    assert_eq!(decode(&[], CodeSize::Bits16), Err(DecodeError::TooShort));
    assert_eq!(decode(&[0x66; 15], CodeSize::Bits16), Err(DecodeError::Invalid), "15 bytes are the most");
    assert_eq!(decode(&[0x0f, 0x0b], CodeSize::Bits64).unwrap().operation, Operation::Other);
    assert_eq!(decode(&[0x0f, 0xff, 0xc0], CodeSize::Bits64).map(|it| it.operation), Ok(Operation::Other));
    assert_eq!(
        decode(&[0x06, 0, 0], CodeSize::Bits64),
        Err(DecodeError::Invalid),
        "PUSH ES is no 64-bit code"
    );
}

#[test]
fn an_address_of_the_next_instruction_does_not_depend_on_where_it_is_decoded() {
    // or dword [rip+0x10], 1
    let Operation::Memory { memory, width, action } =
        operation(&[0x83, 0x0d, 0x10, 0, 0, 0, 1], CodeSize::Bits64)
    else {
        panic!("no memory");
    };
    assert_eq!((memory.base, memory.displacement), (Base::NextInstruction, 0x10));
    assert_eq!((width, action), (Width::Word, Action::AluMemory(Alu::Or, Source::Immediate(1))));
}

#[test]
fn controls_are_told_apart() {
    use CodeSize::{Bits32, Bits64};
    let rax = register(0, Width::Double);
    assert_eq!(operation(&[0x0f, 0x22, 0xd8], Bits64), Operation::ToControl(3, rax));
    assert_eq!(operation(&[0x44, 0x0f, 0x20, 0xc0], Bits64), Operation::FromControl(8, rax));
    assert_eq!(operation(&[0x0f, 0x20, 0xe3], Bits32), Operation::FromControl(4, register(3, Width::Word)));
    assert_eq!(operation(&[0x0f, 0x23, 0xf8], Bits64), Operation::ToDebug(7, rax));
    assert_eq!(operation(&[0x0f, 0x21, 0xf0], Bits64), Operation::FromDebug(6, rax));
    assert_eq!(operation(&[0x0f, 0x06], Bits64), Operation::ClearTaskSwitched);
    let Operation::LoadStatusWord(Operand::Register(from)) = operation(&[0x0f, 0x01, 0xf1], Bits32) else {
        panic!("no LMSW");
    };
    assert_eq!(from.number, 1);
    assert!(matches!(operation(&[0x0f, 0x01, 0x30], Bits32), Operation::LoadStatusWord(Operand::Memory(_))));
    assert!(matches!(operation(&[0x0f, 0x01, 0x38], Bits64), Operation::InvalidatePage(_)));
    assert!(matches!(operation(&[0x0f, 0x01, 0xe0], Bits64), Operation::StoreStatusWord(_)));
    assert_eq!(operation(&[0x8e, 0xd8], Bits64), Operation::Other, "MOV DS, AX");
    assert_eq!(operation(&[0xf2, 0x0f, 0x10, 0x00], Bits64), Operation::Other, "MOVSD of SSE is no string");
    assert_eq!(operation(&[0xf2, 0x0f, 0xc2, 0x00, 0x01], Bits64), Operation::Other, "nor is its CMPSD");
}

#[test]
fn strings_know_their_segment_and_width() {
    let string = |bytes: &[u8], size| {
        let Operation::String { operation, width, segment, address, repeat } = operation(bytes, size) else {
            panic!("no string");
        };
        (operation, width, segment, address, repeat)
    };
    use StringOperation::{Compare, In, Move, Out, Scan, Store};
    let ds = SegmentName::Ds;
    assert_eq!(
        string(&[0xf3, 0xa5], CodeSize::Bits32),
        (Move, Width::Word, ds, Width::Word, Repeat::WhileEqual)
    );
    assert_eq!(
        string(&[0x67, 0x48, 0xab], CodeSize::Bits64),
        (Store, Width::Double, SegmentName::Es, Width::Word, Repeat::Once)
    );
    assert_eq!(
        string(&[0x2e, 0x6f], CodeSize::Bits16),
        (Out, Width::Half, SegmentName::Cs, Width::Half, Repeat::Once)
    );
    assert_eq!(
        string(&[0xf2, 0x6c], CodeSize::Bits64),
        (In, Width::Byte, SegmentName::Es, Width::Double, Repeat::WhileUnequal)
    );
    assert_eq!(
        string(&[0xf3, 0x64, 0xa7], CodeSize::Bits32),
        (Compare, Width::Word, SegmentName::Fs, Width::Word, Repeat::WhileEqual)
    );
    assert_eq!(
        string(&[0xf2, 0x64, 0xae], CodeSize::Bits64),
        (Scan, Width::Byte, SegmentName::Es, Width::Double, Repeat::WhileUnequal)
    );
}

#[test]
fn the_length_of_known_instructions_counts_their_prefixes() {
    let cases: [(&[u8], CodeSize, Known, Option<u8>); 9] = [
        (&[0x0f, 0xa2, 0xcc], CodeSize::Bits64, Known::Cpuid, Some(2)),
        (&[0x66, 0x48, 0x0f, 0xa2], CodeSize::Bits64, Known::Cpuid, Some(4)),
        (&[0x48, 0x0f, 0xa2], CodeSize::Bits32, Known::Cpuid, None),
        (&[0x0f, 0x32], CodeSize::Bits16, Known::ReadMsr, Some(2)),
        (&[0x0f, 0x30], CodeSize::Bits16, Known::WriteMsr, Some(2)),
        (&[0xf4], CodeSize::Bits64, Known::Halt, Some(1)),
        (&[0xf3, 0x0f, 0x01, 0xd9], CodeSize::Bits64, Known::Hypercall, Some(4)),
        (&[0x0f, 0x01, 0xc1], CodeSize::Bits32, Known::Hypercall, Some(3)),
        (&[0x0f], CodeSize::Bits32, Known::Cpuid, None),
    ];
    for (bytes, size, known, expected) in cases {
        assert_eq!(known_length(bytes, size, known), expected, "{bytes:02x?}");
        if expected.is_some() {
            assert_eq!(decode(bytes, size).map(|it| Some(it.length)), Ok(expected));
        }
    }
}
