//! The instructions that were decoded last. Drivers reach their devices by few instructions, again and again.
//!
//! The same bytes mean the same, so what is remembered is never out of date: the bytes are compared each time.
#![forbid(unsafe_code)]

use super::{CodeSize, DecodeError, Instruction, LONGEST, decode};

/// How many are remembered: each at the place that the low bits of its address name.
const PLACES: usize = 8;

/// What one vCPU's instructions meant.
#[derive(Default)]
pub struct Memo([Option<Known>; PLACES]);

struct Known {
    bytes: u128,
    size: CodeSize,
    instruction: Instruction,
}

impl Memo {
    /// The instruction at the start of `bytes`, which lie at `at`.
    ///
    /// # Errors
    /// As [`decode`].
    #[inline]
    pub fn decode(&mut self, at: u64, bytes: [u8; 16], size: CodeSize) -> Result<Instruction, DecodeError> {
        // Instructions of one loop lie a few bytes apart.
        let [low, ..] = (at ^ at >> 3).to_le_bytes();
        let place = &mut self.0[usize::from(low) % PLACES];
        let word = u128::from_le_bytes(bytes);
        if let Some(known) = place
            && known.bytes == word
            && known.size == size
        {
            return Ok(known.instruction);
        }
        Self::learn(place, &bytes, size)
    }

    #[cold]
    #[inline(never)]
    fn learn(
        place: &mut Option<Known>,
        bytes: &[u8; 16],
        size: CodeSize,
    ) -> Result<Instruction, DecodeError> {
        let instruction = decode(&bytes[..LONGEST], size)?;
        *place = Some(Known { bytes: u128::from_le_bytes(*bytes), size, instruction });
        Ok(instruction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn padded(code: &[u8]) -> [u8; 16] {
        let mut bytes = [0x90; 16];
        bytes[..code.len()].copy_from_slice(code);
        bytes
    }

    #[test]
    fn code_that_changed_is_decoded_anew() {
        let mut memo = Memo::default();
        let [load, store] = [[0x8b, 0x00], [0x89, 0x00]].map(|code| padded(&code));
        for bytes in [load, load, store, load] {
            assert_eq!(
                memo.decode(0x1000, bytes, CodeSize::Bits64),
                decode(&bytes[..LONGEST], CodeSize::Bits64)
            );
        }
    }

    #[test]
    fn the_same_bytes_mean_something_else_in_other_code() {
        let mut memo = Memo::default();
        let bytes = padded(&[0x48, 0x8b, 0x00]);
        for size in [CodeSize::Bits64, CodeSize::Bits32, CodeSize::Bits16, CodeSize::Bits64] {
            assert_eq!(memo.decode(0, bytes, size), decode(&bytes[..LONGEST], size));
        }
    }

    proptest! {
        #[test]
        fn it_never_differs_from_the_decoder(
            codes in prop::collection::vec((0u64..32, 0u8..4, any::<[u8; 3]>()), 1..60)
        ) {
            let mut memo = Memo::default();
            for (at, form, operands) in codes {
                let bytes = padded(&[[0x8b, 0x89, 0xc7, 0x0f][usize::from(form)], operands[0], operands[1], operands[2]]);
                prop_assert_eq!(memo.decode(at, bytes, CodeSize::Bits64), decode(&bytes[..LONGEST], CodeSize::Bits64));
            }
        }
    }
}
