//! Fuzzing: the library that the fuzz targets are built with, not a room of podgate.
//!
//! It has the rooms that read what peers say and what stands in files of others, and nothing else. With the fuzzer's
//! instruments in it the whole gateway takes ten minutes to build, most of them for code that no target reaches.

pub mod request;
pub mod status;
pub mod wire;

/// The part of recordings that reads files, and what it needs.
pub mod recording {
    pub mod cast;
    pub mod container;
    pub mod facts;
    pub mod keys;
}

/// The part of the harness that is about those rooms.
pub mod testing {
    pub mod fuzz;
}
