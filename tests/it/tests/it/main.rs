//! Whole handlers over loopback: AWS is moto's server, Microsoft is the simulator.

mod aws;
mod consent;
