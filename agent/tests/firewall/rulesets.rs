//! Rulesets in the shapes that machines have.

/// A ruleset of somebody else.
pub struct Ruleset {
    pub name: &'static str,
    /// A shell's lines.
    pub load: &'static str,
    /// What the judgement's text must hold; empty: it must say nothing.
    pub says: &'static [&'static str],
}

/// Docker's chains as iptables-nft writes them, without and with what its newer versions have.
const DOCKER: &str = "
    iptables -P FORWARD DROP
    for chain in DOCKER DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE; do iptables -N $chain; done
    iptables -A FORWARD -j DOCKER-USER
    iptables -A FORWARD -j DOCKER-FORWARD
    iptables -A DOCKER-FORWARD -j DOCKER-CT
    iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
    iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
    iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -A DOCKER-BRIDGE -o docker0 -j DOCKER
    iptables -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
    iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
    iptables -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
    iptables -t nat -N DOCKER
    iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
    iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
    iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    iptables -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80
";

/// firewalld's chains: zones by link, everything else refused.
const FIREWALLD: &str = r#"nft -f - <<'END'
table inet firewalld {
  chain filter_PREROUTING {
    type filter hook prerouting priority filter + 10; policy accept;
    meta nfproto ipv6 fib saddr . mark . iif oif missing drop
  }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_OUTPUT {
    type filter hook output priority filter + 10; policy accept;
    ct state { established, related } accept
    oifname "lo" accept
  }
  chain filter_INPUT_ZONES {
    iifname "eth0" goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_FORWARD_ZONES {
    iifname "eth0" goto filter_FWD_public
    goto filter_FWD_public
  }
  chain filter_IN_public {
    jump filter_IN_public_allow
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_IN_public_allow {
    tcp dport 22 accept
    ip6 daddr fe80::/64 udp dport 546 accept
  }
  chain filter_FWD_public {
    jump filter_FWD_public_allow
    reject with icmpx admin-prohibited
  }
  chain filter_FWD_public_allow {
    oifname "docker0" accept
  }
}
END"#;

const UFW: &str = "
    iptables -P INPUT DROP
    iptables -P FORWARD DROP
    for of in input forward output; do for part in before user after; do iptables -N ufw-$part-$of; done; done
    for of in input forward output; do
      chain=$(echo $of | tr a-z A-Z)
      for part in before user after; do iptables -A $chain -j ufw-$part-$of; done
      iptables -A ufw-before-$of -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    done
    iptables -A ufw-before-input -i lo -j ACCEPT
    iptables -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
    iptables -A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
    iptables -N ufw-not-local
    iptables -A ufw-before-input -j ufw-not-local
    iptables -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
    iptables -A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
    iptables -A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix ufw
    iptables -A ufw-not-local -j DROP
    iptables -A ufw-before-output -m conntrack --ctstate NEW -j ACCEPT
    iptables -A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
    iptables -A ufw-user-input -p tcp -m multiport --dports 80,443,8000:8100 -j ACCEPT
    iptables -A ufw-after-input -p udp -m udp --dport 137 -j DROP
";

pub const ALL: &[Ruleset] = &[
    Ruleset {
        name: "docker",
        load: DOCKER,
        says: &[
            "table ip filter, chain FORWARD (policy drop)",
            "run: iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT && iptables -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT",
        ],
    },
    Ruleset {
        name: "docker with our ranges let through",
        load: concat!(
            "iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP;",
            "iptables -A DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables -A DOCKER-USER -d 10.244.0.0/16 -j ACCEPT",
        ),
        says: &[],
    },
    Ruleset {
        name: "a drop before docker's chain for users",
        load: "iptables -N DOCKER-USER; iptables -A FORWARD -p udp -j DROP; iptables -A FORWARD -j DOCKER-USER",
        says: &["(rule ", "run: iptables -I FORWARD -s 10.244.0.0/16 -j ACCEPT"],
    },
    Ruleset {
        name: "firewalld",
        load: FIREWALLD,
        says: &[
            "table inet firewalld, chain filter_FORWARD (rule ",
            "run: firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16 && firewall-cmd --reload",
            "table inet firewalld, chain filter_INPUT (rule ",
            "firewall-cmd --permanent --add-port=10250/tcp",
            "firewall-cmd --permanent --add-port=8473/udp",
        ],
    },
    Ruleset {
        name: "ufw",
        load: UFW,
        says: &[
            "run: ufw route allow from 10.244.0.0/16 to any && ufw route allow from any to 10.244.0.0/16",
            "ufw allow proto tcp from 192.0.2.12 to any port 10250",
            "ufw allow proto udp from any to any port 8473",
            "ufw allow proto udp from 10.244.0.0/16 to 10.96.0.10 port 53",
        ],
    },
    Ruleset {
        name: "a server's own nftables.conf",
        load: r"nft -f - <<'END'
table inet filter {
  set allowed { type inet_service; flags interval; elements = { 22, 80, 443, 9000-9100 } }
  set friends { type ipv4_addr; flags interval; elements = { 192.0.2.100, 198.51.100.0/24 } }
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { invalid : drop, established : accept, related : accept }
    iif lo accept
    ip saddr @friends accept
    tcp dport @allowed accept
    meta l4proto icmp limit rate 5/second accept
  }
  chain forward { type filter hook forward priority filter; policy drop; }
  chain output { type filter hook output priority filter; policy accept; }
}
END",
        says: &[
            "table inet filter, chain input (policy drop)",
            "nft insert rule inet filter forward ip saddr 10.244.0.0/16 counter accept",
            "nft insert rule inet filter input ip saddr 192.0.2.12 tcp dport 10250 counter accept",
        ],
    },
    Ruleset {
        name: "output by list",
        load: r#"nft -f - <<'END'
table ip out {
  chain output {
    type filter hook output priority 0; policy drop;
    ct state established,related accept
    oifname "lo" accept
    tcp dport { 53, 80, 443, 7443 } accept
    udp dport { 53, 123 } accept
  }
}
END"#,
        says: &["nft insert rule ip out output ip daddr 10.244.0.0/16 counter accept"],
    },
    Ruleset {
        name: "raw and mangle",
        load: "iptables -t raw -A PREROUTING -s 10.0.0.0/8 -i vp+ -j DROP; iptables -t mangle -A FORWARD -p udp -d 10.244.0.0/15 -j DROP",
        says: &["-t raw -I PREROUTING -s 10.244.0.0/16", "-t mangle -I FORWARD -d 10.244.0.0/16 -j ACCEPT"],
    },
    Ruleset {
        name: "kube-proxy's leftovers",
        load: "
            iptables -N KUBE-FORWARD; iptables -N KUBE-FIREWALL; iptables -N KUBE-SERVICES
            iptables -A FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD
            iptables -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
            iptables -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
            iptables -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
            iptables -A OUTPUT -j KUBE-FIREWALL
            iptables -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
            iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
            iptables -A KUBE-SERVICES -d 10.97.0.1/32 -p tcp -m tcp --dport 443 -j REJECT
        ",
        says: &[],
    },
    Ruleset {
        name: "a permissive ruleset with bans",
        load: r"nft -f - <<'END'
table inet f2b {
  set banned { type ipv4_addr; elements = { 198.51.100.1, 198.51.100.2 } }
  chain input { type filter hook input priority filter - 1; policy accept; ip saddr @banned reject; }
  chain forward {
    type filter hook forward priority filter; policy accept;
    ip saddr . ip daddr { 198.51.100.7 . 192.0.2.100 } drop
    tcp dport 25 drop
    tcp flags & (fin | syn) == (fin | syn) drop
    ct state new limit rate over 1000/second burst 1000 packets drop
  }
}
table ip nat {
  chain postrouting { type nat hook postrouting priority srcnat; ip saddr 172.20.0.0/16 masquerade; }
}
END",
        says: &[],
    },
];
