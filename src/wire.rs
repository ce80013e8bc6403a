//! Wire: bytes from peers into events, and events into bytes. No socket, clock, task or log in here.
