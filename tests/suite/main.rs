//! Podgate from outside: one binary, a module per behaviour, real loopback sockets.

#![allow(missing_docs, reason = "names of tests are claims already")]

mod upgrade;
