//! The listening sockets of all network namespaces, and who has them open.
//!
//! A network namespace is read through a living process in it; one that is only kept by a mount is not seen. A
//! socket that several processes have open (a server and its workers) is told with the smallest pid.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::net::IpAddr;

use procfs_core::net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState};
use procfs_core::{ExplicitSystemInfo, FromReadSI, ProcResult};

use super::scan::ProcessRow;
use crate::procfs::{ProcessTable, link_inode};

/// Most sockets of one snapshot.
pub const PORTS_MAX: usize = 262_144;
/// Longest socket table that is read of one network namespace, in bytes: some 400,000 sockets.
const TABLE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most open files that are looked at of one process.
const FDS_MAX: usize = 1_048_576;

/// What the kernel calls a socket's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP over IPv4.
    Tcp,
    /// TCP over IPv6, which may take IPv4 too.
    Tcp6,
    /// UDP over IPv4.
    Udp,
    /// UDP over IPv6, which may take IPv4 too.
    Udp6,
}

impl Protocol {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Tcp, Self::Tcp6, Self::Udp, Self::Udp6];

    /// The table's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tcp6 => "tcp6",
            Self::Udp => "udp",
            Self::Udp6 => "udp6",
        }
    }
}

/// One listening socket: TCP in state LISTEN, UDP bound and connected to nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRow {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address that it is bound to.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The user that made it.
    pub uid: u32,
    /// Its number.
    pub inode: u64,
    /// The number of its network namespace.
    pub net_ns: u64,
    /// The process that has it open; `None` for the kernel's own, and where that may not be seen.
    pub pid: Option<u32>,
}

/// All listening sockets, in the order of namespace, protocol and port.
pub fn listening(table: &ProcessTable, processes: &[ProcessRow]) -> Vec<PortRow> {
    let mut namespaces: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for process in processes {
        if let Some(net_ns) = process.net_ns {
            namespaces.entry(net_ns).or_default().push(process.pid);
        }
    }
    let mut rows = Vec::new();
    for (net_ns, pids) in &namespaces {
        // The first one may end while it is read; then the next one tells.
        let sockets = pids.iter().find_map(|pid| sockets(table, *pid, *net_ns));
        let mut sockets = sockets.unwrap_or_default();
        if !sockets.is_empty() {
            find_owners(table, pids, &mut sockets);
        }
        rows.extend(sockets);
        rows.truncate(PORTS_MAX);
    }
    rows.sort_by_key(|row| (row.net_ns, row.protocol, row.port, row.address, row.inode));
    rows
}

/// The listening sockets of a process's network namespace; `None` where the process is gone, or has moved.
fn sockets(table: &ProcessTable, pid: u32, net_ns: u64) -> Option<Vec<PortRow>> {
    let mut rows = Vec::new();
    for protocol in Protocol::ALL {
        let path = table
            .root()
            .join(format!("{pid}/net/{}", protocol.as_str()));
        match std::fs::File::open(path) {
            Ok(file) => match parse(protocol, file.take(TABLE_BYTES_MAX), net_ns) {
                Ok(parsed) => rows.extend(parsed),
                Err(error) => tracing::debug!(pid, %error, "a socket table cannot be read"),
            },
            // Without IPv6 in the kernel two are not there, of a process that is gone all four.
            Err(_) => continue,
        }
    }
    let link = std::fs::read_link(table.root().join(format!("{pid}/ns/net"))).ok()?;
    (link_inode(&link.to_string_lossy()) == Some(net_ns)).then_some(rows)
}

fn parse(protocol: Protocol, table: impl std::io::Read, net_ns: u64) -> ProcResult<Vec<PortRow>> {
    let info = ExplicitSystemInfo {
        boot_time_secs: 0,
        ticks_per_second: 0,
        page_size: 0,
        is_little_endian: cfg!(target_endian = "little"),
    };
    let row = |local: std::net::SocketAddr, uid, inode| PortRow {
        protocol,
        address: local.ip(),
        port: local.port(),
        uid,
        inode,
        net_ns,
        pid: None,
    };
    Ok(match protocol {
        Protocol::Tcp | Protocol::Tcp6 => {
            let entries = TcpNetEntries::from_read(table, &info)?.0;
            let listen = entries
                .into_iter()
                .filter(|it| it.state == TcpState::Listen);
            listen
                .map(|it| row(it.local_address, it.uid, it.inode))
                .collect()
        }
        Protocol::Udp | Protocol::Udp6 => {
            let entries = UdpNetEntries::from_read(table, &info)?.0;
            let bound = entries.into_iter().filter(|it| it.state == UdpState::Close);
            bound
                .map(|it| row(it.local_address, it.uid, it.inode))
                .collect()
        }
    })
}

/// Looks through the open files of processes, in the order of their pids.
fn find_owners(table: &ProcessTable, pids: &[u32], sockets: &mut [PortRow]) {
    let by_inode: HashMap<u64, usize> = sockets
        .iter()
        .enumerate()
        .map(|(index, socket)| (socket.inode, index))
        .collect();
    let mut left = sockets.len();
    for pid in pids {
        let Ok(files) = std::fs::read_dir(table.root().join(format!("{pid}/fd"))) else {
            continue;
        };
        for file in files.flatten().take(FDS_MAX) {
            let index = std::fs::read_link(file.path())
                .ok()
                .and_then(|link| socket_inode(link.to_str()?))
                .and_then(|inode| by_inode.get(&inode));
            if let Some(socket) = index.and_then(|index| sockets.get_mut(*index))
                && socket.pid.is_none()
            {
                socket.pid = Some(*pid);
                left -= 1;
            }
        }
        if left == 0 {
            return;
        }
    }
}

/// The number in the link of an open socket: `socket:[12345]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.starts_with("socket:").then(|| link_inode(link))?
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::path::Path;

    use super::*;
    use crate::local::scan::Scene;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    fn only_what_listens_is_told() {
        let table = format!(
            "{HEAD}   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0\n   1: 0100007F:1F91 0100007F:0016 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0\n"
        );
        let rows = parse(Protocol::Tcp, table.as_bytes(), 7).expect("the table is one");
        let row = PortRow {
            protocol: Protocol::Tcp,
            address: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            uid: 1000,
            inode: 4711,
            net_ns: 7,
            pid: None,
        };
        assert_eq!(rows, [row]);
        let table = format!(
            "{HEAD}   0: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5 1 0\n"
        );
        let rows = parse(Protocol::Udp6, table.as_bytes(), 7).expect("the table is one");
        assert_eq!(
            rows.first().map(|row| (row.address.to_string(), row.port)),
            Some(("::1".to_owned(), 53))
        );
        assert!(parse(Protocol::Tcp, "head\nrubbish\n".as_bytes(), 7).is_err());
        assert!(parse(Protocol::Tcp, "".as_bytes(), 7).is_ok_and(|rows| rows.is_empty()));
    }

    #[test]
    fn a_socket_is_known_by_its_link() {
        assert_eq!(socket_inode("socket:[12]"), Some(12));
        for link in ["pipe:[12]", "/a/socket:[12]", "socket:[x]", ""] {
            assert_eq!(socket_inode(link), None, "{link}");
        }
    }

    #[test]
    fn our_own_sockets_are_found_with_their_process() -> std::io::Result<()> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        let table = ProcessTable::open(Path::new("/proc"))?;
        let rows = Scene::read(&table, Vec::new())?.ports(&table);
        for (protocol, address) in [
            (Protocol::Tcp, tcp.local_addr()?),
            (Protocol::Udp, udp.local_addr()?),
        ] {
            let row = rows.iter().find(|row| {
                (row.protocol, row.address, row.port) == (protocol, address.ip(), address.port())
            });
            let pid = row.and_then(|row| row.pid);
            assert_eq!(pid, Some(std::process::id()), "{protocol:?} {address}");
        }
        Ok(())
    }
}
