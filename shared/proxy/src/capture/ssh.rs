//! Over SSH the rules would cut the very connection that installs them.

use std::{collections::HashMap, fs};

/// The server's port of the SSH connection that this process was started over, if it was.
///
/// sudo drops SSH_CONNECTION, so the parents' environments are looked at as well: whoever may install rules may read
/// them.
pub fn port_in_use() -> Option<u16> {
    let mut pid = std::process::id();
    // Depth of a process tree; a loop can't be, a bound costs nothing.
    for _ in 0..64 {
        if let Some(port) =
            fs::read(format!("/proc/{pid}/environ")).ok().as_deref().and_then(from_environment)
        {
            return Some(port);
        }
        pid = parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        if pid <= 1 {
            return None;
        }
    }
    None
}

/// `SSH_CONNECTION=<client> <its port> <server> <its port>`.
fn from_environment(environment: &[u8]) -> Option<u16> {
    let variables: HashMap<&[u8], &[u8]> = environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            Some((variable.get(..at)?, variable.get(at + 1..)?))
        })
        .collect();
    let connection = std::str::from_utf8(variables.get(&b"SSH_CONNECTION"[..])?).ok()?;
    connection.split(' ').nth(3)?.parse().ok()
}

/// Fourth field of `/proc/<pid>/stat`; the second is in parentheses and may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_port_is_read() {
        let environment = b"A=1\0SSH_CONNECTION=192.0.2.9 50111 192.0.2.1 2222\0B=";
        assert_eq!(from_environment(environment), Some(2222));
        assert_eq!(from_environment(b"A=1\0XSSH_CONNECTION=a 1 b 2"), None);
        assert_eq!(parent("7 (a) b (c) S 42 7 7"), Some(42));
    }
}
