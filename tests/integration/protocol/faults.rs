//! Seeded faults: the machine catches each.
