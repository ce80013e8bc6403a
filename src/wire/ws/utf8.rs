//! Whether bytes that come in pieces are UTF-8.

/// The check of one message, or its absence.
#[derive(Debug)]
pub(super) struct Utf8 {
    checked: bool,
    /// The beginning of a character whose rest has not come yet: at most three bytes, since four always are
    /// a character or an error.
    cut: [u8; 4],
    len: usize,
}

impl Utf8 {
    pub(super) fn checked() -> Self {
        Self { checked: true, cut: [0; 4], len: 0 }
    }

    pub(super) fn unchecked() -> Self {
        Self { checked: false, ..Self::checked() }
    }

    /// Takes the next bytes; false when they cannot be UTF-8, whatever follows.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> bool {
        if !self.checked {
            return true;
        }
        while self.len > 0 {
            let Some((byte, rest)) = bytes.split_first() else {
                return true;
            };
            bytes = rest;
            self.cut[self.len] = *byte;
            self.len += 1;
            match str::from_utf8(&self.cut[..self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match str::from_utf8(bytes) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let cut = &bytes[error.valid_up_to()..];
                self.cut[..cut.len()].copy_from_slice(cut);
                self.len = cut.len();
                true
            }
        }
    }

    /// Whether the bytes so far end between two characters.
    pub(super) fn is_whole(&self) -> bool {
        self.len == 0
    }
}
