//! Changes at random, each of them decided by the seed alone.

/// Most bytes of an input: libFuzzer's own bound for corpora like these.
const LONGEST: usize = 4096;

/// Lengths, flags and ids at which things change.
const EDGES: [u8; 12] = [0, 1, 2, 7, 0x7d, 0x7e, 0x7f, 0x80, 0x81, 0x88, 0xfe, 0xff];

pub(super) struct Mutator(u64);

impl Mutator {
    pub(super) fn new(seed: u64) -> Self {
        // Never zero, from which there is no way on.
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// One of the inputs, changed some times.
    pub(super) fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut data = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut data, corpus);
        }
        data.truncate(LONGEST);
        data
    }

    fn change(&mut self, data: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(data.len() + 1);
        let end = at + self.below(1 + (data.len() - at).min(64));
        match self.below(7) {
            0 => drop(data.drain(at..end)),
            1 => {
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            2 => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            3 => data.insert(at, self.random() as u8),
            _ if at == data.len() => {}
            4 => data[at] ^= 1 << self.below(8),
            5 => data[at] = EDGES[self.below(EDGES.len())],
            _ => data[at] = data[at].wrapping_add(1 + self.below(255) as u8),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random() % bound as u64) as usize
    }

    /// Marsaglia's xorshift, multiplied: its low bits are as good as the others.
    fn random(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}
