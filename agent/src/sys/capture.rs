//! What asks for TCP connections on a link, seen beside the kernel's own way with it, and packets sent as they are.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt,
        socket, sockopt,
    },
};

/// Bytes that the kernel keeps of what was not read yet, if it may: some thousand packets.
const BACKLOG: usize = 4 << 20;

const fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Passes IPv4 packets to this machine that carry a TCP segment with SYN and none of FIN, RST and ACK. Offsets count from the
/// IP header.
const OPENINGS: [libc::sock_filter; 12] = {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX,
        BPF_MSH, BPF_RET, BPF_W,
    };
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, PACKET_TYPE),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 9, libc::PACKET_HOST as u32),
        step(BPF_LD | BPF_B | BPF_ABS, 0, 0, 9), // protocol
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 7, 6),
        step(BPF_LD | BPF_H | BPF_ABS, 0, 0, 6), // a later fragment has no TCP header
        step(BPF_JMP | BPF_JSET | BPF_K, 5, 0, 0x1fff),
        step(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 0), // length of the IP header
        step(BPF_LD | BPF_B | BPF_IND, 0, 0, 13), // flags
        step(BPF_ALU | BPF_AND | BPF_K, 0, 0, 0x17),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0x02),
        step(BPF_RET | BPF_K, 0, 0, 0x0000_ffff),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ]
};

/// A socket that gets a copy of every packet that asks for a TCP connection on a link of the thread's network namespace. It
/// never blocks.
pub fn openings(link: u32) -> io::Result<OwnedFd> {
    let ipv4 = (libc::ETH_P_IP as u16).to_be();
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    #[allow(unsafe_code, reason = "a system call without pointers, which gives a new descriptor")]
    // SAFETY: takes numbers only; the descriptor is new, and nobody else owns it. Protocol 0: nothing comes before the filter is there.
    let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(libc::socket(libc::AF_PACKET, kind, 0))?) };
    let mut filter = OPENINGS;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    #[allow(unsafe_code, reason = "nix knows no packet filters")]
    // SAFETY: the pointer and the length are those of a value that lives until after the call; the kernel copies the filter.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BACKLOG)?;
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ipv4,
        sll_ifindex: link.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    #[allow(unsafe_code, reason = "nix makes no addresses of links")]
    // SAFETY: pointer and length are those of a value that lives until after the call.
    Errno::result(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    })?;
    Ok(socket)
}

/// The next packet of a socket, IP header first; `WouldBlock` when there is none.
pub fn next(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::empty())?)
}

/// A socket of the thread's network namespace that sends whole IPv4 packets, whatever their source. It never blocks.
pub fn sender() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?)
}

/// Sends one packet, IP header first; the kernel computes that header's checksum.
pub fn send(socket: impl AsFd, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
    let [a, b, c, d] = to.octets();
    let to = SockaddrIn::new(a, b, c, d, 0);
    Ok(sendto(socket.as_fd().as_raw_fd(), packet, &to, MsgFlags::empty()).map(drop)?)
}
