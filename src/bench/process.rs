//! Process: what another process has used, by the operating system's own accounts.
//! Source: proc(5), `/proc/PID/stat` and `/proc/PID/status`.

use std::io;
use std::time::Duration;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// In user space and in the kernel on its behalf, by all its threads.
    pub cpu: Duration,
    /// Bytes in memory now.
    pub memory: u64,
}

/// Field of `stat` behind the name: time in user space; the next is that in the kernel.
const USER_TIME: usize = 11;

/// What this process has used so far.
///
/// # Errors
/// When it is gone, or `/proc` is not there.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse(&stat, &status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name may hold blanks and parentheses.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(USER_TIME);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = kibibytes.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let cpu = Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
    Some(Usage { cpu, memory: kibibytes * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "7 (a) b 1 (c) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 9 9 20 0 1 0 100 1 2";
        let Usage { cpu, memory } = parse(stat, "Name:\ta\nVmRSS:\t    2048 kB\n").unwrap();
        let seconds = 200.0 / rustix::param::clock_ticks_per_second() as f64;
        assert_eq!((cpu.as_secs_f64(), memory), (seconds, 2 << 20));
        assert!(parse(stat, "Name:\tkthreadd\n").is_none());
        assert!(usage(std::process::id()).unwrap().memory > 0);
    }
}
