//! The two families of addresses.

use std::net::IpAddr;

/// A family of addresses. The kernel's table of one knows nothing of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, which every cluster has.
    V4,
    /// IPv6, the second one of a dual-stack cluster.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Something for each family: the second only in a dual-stack cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Families<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: Option<T>,
}

impl<T> Families<T> {
    /// That of one family, if it is there.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => Some(&self.v4),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, family: Family) -> Option<&mut T> {
        match family {
            Family::V4 => Some(&mut self.v4),
            Family::V6 => self.v6.as_mut(),
        }
    }

    /// What is there.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        std::iter::once((Family::V4, &self.v4)).chain(self.v6.as_ref().map(|v6| (Family::V6, v6)))
    }

    /// Makes something of what is there.
    pub fn map<U>(&self, mut make: impl FnMut(Family, &T) -> U) -> Families<U> {
        Families { v4: make(Family::V4, &self.v4), v6: self.v6.as_ref().map(|v6| make(Family::V6, v6)) }
    }
}
