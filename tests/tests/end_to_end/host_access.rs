//! From a pod to the machine that `up` runs on, and to what that machine reaches. Servers listen on this machine's loopback
//! address alone, or in networks of the test's own; clients are programs in pods.

#[path = "host_access/redis.rs"]
mod redis;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

use minisvc_proto::resource::NODES;
use minisvc_tests::{
    cluster::{Cluster, Said},
    machines::in_room,
    netns::{Lan, Namespace},
};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    crashes::{kill_9, pids_with},
    listed, pod_names,
};

const NAME: &str = "host.minisvc.internal";
/// What the name stands for.
const ADDRESS: &str = "192.168.77.254";
/// Nothing that is waited for takes longer.
const HANGS: Duration = Duration::from_secs(30);

/// A process of the test's own; ends with it.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // One that has ended by itself is only waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Accepts on an address, each connection on a thread of its own, until the test ends. Returns the port.
fn tcp_server(ip: Ipv4Addr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Hears a client to its end, and only then says how much that was, and from whom.
fn count(mut stream: TcpStream) {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    let from = stream.peer_addr().unwrap().ip();
    write!(stream, "{} bytes from {from}", heard.len()).unwrap();
}

/// Sends every datagram back, until the test ends. Returns the port.
fn udp_server(ip: Ipv4Addr) -> u16 {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // A client that is gone is no concern of ours.
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    port
}

/// A port of this machine's loopback address on which nobody listens: the kernel gives it to nobody else while this is held.
fn shut_port() -> (UdpSocket, u16) {
    let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = held.local_addr().unwrap().port();
    // Connected to somebody else, it takes from nobody else: a datagram of ours is refused.
    held.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    (held, port)
}

const TALK: &str = r#"
    alarm 30; my ($to, $n) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $to) or die "connect: $!\n";
    print $s "x" x $n; $s->flush; $s->shutdown(1);
    my $answer = do { local $/; <$s> };
    die "read: $!\n" unless defined $answer;
    print $answer;
"#;

/// Has sent all it sends before it can be broken off: the kernel tells of a reset once, and not to the one who reads if he writes.
const BROKEN_OFF: &str = r#"
    alarm 30; my ($to) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $to) or die "connect: $!\n";
    syswrite($s, "x") == 1 or die "write: $!\n";
    defined sysread($s, my $got, 1) or die "read: $!\n";
"#;

const DATAGRAM: &str = r#"
    alarm 30; my ($to, $n) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $to, Proto => "udp") or die "connect: $!\n";
    for my $letter ("a", "b") {
        $s->send($letter x $n);
        defined $s->recv(my $got, 65535) or die "recv: $!\n";
        die "something else\n" unless $got eq $letter x $n;
    }
    print "$n bytes there and back";
"#;

/// 800 blocks of 64 KiB each way at the same time.
const BULK: &str = r#"
    alarm 60; my ($to) = @ARGV;
    my $s = IO::Socket::INET->new(PeerAddr => $to) or die "connect: $!\n";
    my $rest = "x" x 65528;
    if (!fork) { print $s pack("Q>", $_), $rest for 0..799; $s->flush; $s->shutdown(1); exit 0 }
    for my $i (0..799) {
        read($s, my $block, 65536) == 65536 or die "block $i: $!\n";
        die "block $i is wrong\n" unless $block eq pack("Q>", $i) . $rest;
    }
    wait; die "more\n" if read($s, my $more, 1);
    print "all of it";
"#;

const MANY: &str = r#"
    alarm 30; my ($to, $n) = @ARGV; my @all;
    for (1..$n) { push @all, IO::Socket::INET->new(PeerAddr => $to) // die "connect $_: $!\n" }
    for my $i (0..$#all) { my $s = $all[$i]; print $s "$i\n"; $s->flush }
    for my $i (0..$#all) { my $s = $all[$i]; my $got = <$s>; die "$i: $got\n" unless $got eq "$i\n" }
    print scalar @all;
"#;

/// Every connection gets its answer, or is refused; then all are closed, and there is room for another.
const TOO_MANY: &str = r#"
    alarm 30; my ($to, $n) = @ARGV; my (@all, $refused);
    for (1..$n) {
        if (my $s = IO::Socket::INET->new(PeerAddr => $to)) { push @all, $s; <$s> eq "hello\n" or die "no answer\n" }
        elsif ($!{ECONNREFUSED}) { $refused++ } else { die "connect: $!\n" }
    }
    print @all . " there, $refused refused";
    @all = ();
    until (IO::Socket::INET->new(PeerAddr => $to)) { select undef, undef, undef, 0.01 }
"#;

/// From that many sockets, then from the first once more.
const FLOWS: &str = r#"
    alarm 30; my ($to, $n) = @ARGV;
    my @all = map { IO::Socket::INET->new(PeerAddr => $to, Proto => "udp") } 1..$n;
    for my $s (@all, $all[0]) { $s->send("x"); defined $s->recv(my $got, 9) or die "recv: $!\n" }
    print scalar @all;
"#;

fn perl(cluster: &Cluster, place: &[&str], script: &str, args: &[&str]) -> Said {
    let program = ["--", "perl", "-MErrno", "-MIO::Socket::INET", "-e", script];
    cluster.run(&[place, &program, args].concat())
}

/// In every pod, then on a node.
fn everywhere(cluster: &Cluster, script: &str, args: &[&str], mut look: impl FnMut(Said)) {
    for pod in pod_names(cluster) {
        look(perl(cluster, &["exec", &pod], script, args));
    }
    look(perl(cluster, &["node", "exec", "node-1"], script, args));
}

fn two_pods(cluster: &Cluster) {
    cluster.sh("minisvc create deployment client --replicas 2 -- minisvc echo --port 8080").ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/client --timeout=30s").ok();
}

fn failed(said: &Said, why: &str) {
    assert!(!said.status.success() && said.err.contains(why), "{why} was expected: {said}");
}

#[test]
fn a_pod_reaches_what_listens_on_this_machine_s_loopback_address_alone() {
    let cluster = Cluster::up("host", 2);
    two_pods(&cluster);
    let at = |port: u16| format!("{NAME}:{port}");

    let counting = at(tcp_server(Ipv4Addr::LOCALHOST, count));
    everywhere(&cluster, TALK, &[&counting, "5000"], |said| {
        assert_eq!(said.ok(), "5000 bytes from 127.0.0.1");
    });
    // What listens on [::1] only is as much a service of this machine.
    if let Ok(listener) = TcpListener::bind("[::1]:0") {
        let to = at(listener.local_addr().unwrap().port());
        thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(count));
        everywhere(&cluster, TALK, &[&to, "3"], |said| assert_eq!(said.ok(), "3 bytes from ::1"));
    }

    let echo = at(udp_server(Ipv4Addr::LOCALHOST));
    for size in ["1", "1472", "60000"] {
        let want = format!("{size} bytes there and back");
        everywhere(&cluster, DATAGRAM, &[&echo, size], |said| assert_eq!(said.ok(), want));
    }

    let (_held, shut) = shut_port();
    everywhere(&cluster, TALK, &[&at(shut), "1"], |said| failed(&said, "connect: Connection refused"));
    everywhere(&cluster, DATAGRAM, &[&at(shut), "1"], |said| failed(&said, "recv: Connection refused"));

    let breaking = at(tcp_server(Ipv4Addr::LOCALHOST, |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }));
    everywhere(&cluster, BROKEN_OFF, &[&breaking], |said| failed(&said, "read: Connection reset by peer"));
}

#[test]
fn fifty_megabytes_go_both_ways_at_once_and_300_connections_stand_side_by_side() {
    let cluster = Cluster::up("bulk", 2);
    two_pods(&cluster);
    let bulk = tcp_server(Ipv4Addr::LOCALHOST, |stream| {
        let block = |i: u64| [&i.to_be_bytes()[..], &vec![b'x'; 65_528]].concat();
        let mut back = stream.try_clone().unwrap();
        let sending = thread::spawn(move || (0..800).for_each(|i| back.write_all(&block(i)).unwrap()));
        let mut stream = stream;
        let mut got = vec![0; 65_536];
        for i in 0..800 {
            stream.read_exact(&mut got).unwrap();
            assert!(got == block(i), "block {i}");
        }
        assert_eq!(stream.read(&mut got).unwrap(), 0);
        sending.join().unwrap();
    });
    let pods = pod_names(&cluster);
    let said = perl(&cluster, &["exec", &pods[0]], BULK, &[&format!("{NAME}:{bulk}")]);
    assert_eq!(said.ok(), "all of it");

    // Nobody gets an answer before all are there.
    let all_there = Barrier::new(300);
    let many = tcp_server(Ipv4Addr::LOCALHOST, move |mut stream| {
        all_there.wait();
        let mut word = [0; 16];
        let length = stream.read(&mut word).unwrap();
        stream.write_all(&word[..length]).unwrap();
    });
    let said = perl(&cluster, &["exec", &pods[1]], MANY, &[&format!("{NAME}:{many}"), "300"]);
    assert_eq!(said.ok(), "300");
}

#[test]
fn a_relay_that_dies_ends_its_connections_and_the_next_one_carries_on() {
    let cluster = Cluster::up("relay", 1);
    two_pods(&cluster);
    let (told, states) = mpsc::channel();
    let port = tcp_server(Ipv4Addr::LOCALHOST, move |mut stream| {
        told.send("begun").unwrap();
        // Whether it ends or breaks off.
        let _ = stream.read(&mut [0; 16]);
        // The test may be over.
        let _ = told.send("ended");
    });
    let pod = pod_names(&cluster).remove(0);
    let to = format!("{NAME}:{port}");
    let held = r"my $s = IO::Socket::INET->new(PeerAddr => shift) or die; <$s>";
    let mut command = cluster.command(cluster.binary());
    command.args(["exec", &pod, "--", "perl", "-MIO::Socket::INET", "-e", held, &to]);
    let _held = Background(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(states.recv_timeout(HANGS).unwrap(), "begun");

    let footprint = cluster.footprint();
    let [relay] = pids_with(&footprint, &["up", "--stage relay"])[..] else { panic!("{footprint:?}") };
    kill_9(relay);
    assert_eq!(states.recv_timeout(HANGS).unwrap(), "ended");
    // The API comes through the relay, too: it is back when that answers.
    assert_eq!(listed(&cluster, &NODES).len(), 1);
    let counting = tcp_server(Ipv4Addr::LOCALHOST, count);
    let said = perl(&cluster, &["exec", &pod], TALK, &[&format!("{NAME}:{counting}"), "7"]);
    assert_eq!(said.ok(), "7 bytes from 127.0.0.1");
    let said = perl(
        &cluster,
        &["exec", &pod],
        DATAGRAM,
        &[&format!("{NAME}:{}", udp_server(Ipv4Addr::LOCALHOST)), "7"],
    );
    assert_eq!(said.ok(), "7 bytes there and back");
}

#[test]
fn without_host_access_there_is_neither_a_name_nor_a_way() {
    let cluster = Cluster::prepared("apart");
    let output = cluster.start_command(1).arg("--no-host-access").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    two_pods(&cluster);
    let (told, states) = mpsc::channel();
    let port = tcp_server(Ipv4Addr::LOCALHOST, move |_| told.send(()).unwrap());
    let pod = pod_names(&cluster).remove(0);
    assert!(!cluster.run(&["exec", &pod, "--", "getent", "hosts", NAME]).status.success());
    let said = perl(&cluster, &["exec", &pod], TALK, &[&format!("{ADDRESS}:{port}"), "1"]);
    assert!(!said.status.success(), "{said}");
    assert!(states.try_recv().is_err());
}

#[test]
fn what_is_too_much_is_refused_and_the_idlest_flow_makes_room() {
    let cluster = Cluster::prepared("bounded");
    let up = cluster.start_command(1);
    let mut command = cluster.command("prlimit");
    // 512 files stay for the rest of the relay; connections and flows take two each: 128 of either.
    command.arg("--nofile=1024:1024").arg(cluster.binary()).args(up.get_args());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    two_pods(&cluster);
    let pod = pod_names(&cluster).remove(0);
    let greeting = tcp_server(Ipv4Addr::LOCALHOST, |mut stream| {
        // One that was given up is no concern of ours.
        let _ = stream.write_all(b"hello\n");
        let _ = stream.read(&mut [0]);
    });
    let said = perl(&cluster, &["exec", &pod], TOO_MANY, &[&format!("{NAME}:{greeting}"), "200"]);
    assert_eq!(said.ok(), "128 there, 72 refused");
    let echo = udp_server(Ipv4Addr::LOCALHOST);
    let said = perl(&cluster, &["exec", &pod], FLOWS, &[&format!("{NAME}:{echo}"), "200"]);
    assert_eq!(said.ok(), "200");
}

/// Servers that answer on an address of the network that the thread stands in.
fn servers(ip: Ipv4Addr) -> (SocketAddr, SocketAddr) {
    ((ip, tcp_server(ip, count)).into(), (ip, udp_server(ip)).into())
}

#[test]
fn a_pod_reaches_this_machine_s_addresses_and_networks() {
    in_room("host_access::a_pod_reaches_this_machine_s_addresses_and_networks", |_: &Path| {
        let (here, there) = (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 9));
        let this = Namespace::open("this machine", Path::new("/proc/thread-self/ns/net")).unwrap();
        this.run("ip", &["link", "set", "lo", "up"]).unwrap();
        let mut lan = Lan::switch(here).unwrap();
        lan.connect(&this, "eth7", here).unwrap();
        let other = lan.machine("another machine", there).unwrap();
        let of_this = servers(here);
        let of_other = other.enter(|| Ok(servers(there))).unwrap();

        let cluster = Cluster::up("reach", 1);
        two_pods(&cluster);
        for ((tcp, udp), from) in [(of_this, here), (of_other, here)] {
            let want = format!("900 bytes from {from}");
            everywhere(&cluster, TALK, &[&tcp.to_string(), "900"], |said| assert_eq!(said.ok(), want));
            everywhere(&cluster, DATAGRAM, &[&udp.to_string(), "9000"], |said| {
                assert_eq!(said.ok(), "9000 bytes there and back");
            });
            // The same host, a port where nobody is.
            let shut = SocketAddr::new(tcp.ip(), 9).to_string();
            everywhere(&cluster, TALK, &[&shut, "1"], |said| failed(&said, "connect: Connection refused"));
            everywhere(&cluster, DATAGRAM, &[&shut, "1"], |said| failed(&said, "recv: Connection refused"));
        }
        // This machine has no way there, and a pod is told the same as a process of this machine.
        everywhere(&cluster, TALK, &["203.0.113.1:80", "1"], |said| {
            failed(&said, "connect: Network is unreachable");
        });
    });
}
