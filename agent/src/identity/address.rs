//! The node's own address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// The address of this machine from which it speaks to the server at a URL. Sends nothing. An error is the reason in one line.
pub fn towards(server: &str) -> Result<Ipv4Addr, String> {
    let authority = server.trim_start_matches("https://").split('/').next().unwrap_or_default();
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
    let find = || -> std::io::Result<Option<Ipv4Addr>> {
        for to in with_port.to_socket_addrs()?.filter(SocketAddr::is_ipv4) {
            // Connecting a UDP socket only makes the kernel choose a source address.
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            if let IpAddr::V4(ip) = socket.local_addr()?.ip() {
                return Ok(Some(ip));
            }
        }
        Ok(None)
    };
    match find() {
        Ok(Some(ip)) if !ip.is_loopback() => Ok(ip),
        Ok(_) => Err(format!("the address of this node cannot be told from the way to {server}")),
        Err(e) => Err(format!("there is no way to the server {server} ({e})")),
    }
}

/// The address, if it is one of this machine: the server must not be told of another. An error is the reason in one line.
pub fn of_this_machine(ip: Ipv4Addr) -> Result<Ipv4Addr, String> {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => Ok(ip),
        Err(e) => Err(format!("this machine has no address {ip} ({e})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_machine_is_refused() {
        assert_eq!(of_this_machine(Ipv4Addr::LOCALHOST), Ok(Ipv4Addr::LOCALHOST));
        assert!(of_this_machine(Ipv4Addr::new(192, 0, 2, 77)).unwrap_err().contains("no address 192.0.2.77"));
    }

    #[test]
    fn a_server_on_this_machine_says_nothing_about_the_nodes_address() {
        assert!(towards("https://127.0.0.1:7443").unwrap_err().contains("cannot be told"));
        assert!(towards("https://no.such.name.invalid:7443").unwrap_err().contains("no way"));
    }
}
