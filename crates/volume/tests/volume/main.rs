//! Volumes on disks that tear, stall, fail, fill up and lose power; on stores that somebody else wrote; and beside a
//! second implementation of the format.
//!
//! Campaigns print the seed of each round; `SEALVOL_SEED` replays one, `SEALVOL_ROUNDS` multiplies the rounds.

mod copy_up;
mod crash;
mod crash_edges;
mod cuts;
mod deep_stacks;
mod failed_sync;
mod flushes;
mod interleavings;
mod kills;
mod large;
mod materialise;
mod merge;
mod merge_down;
mod merge_down_cuts;
mod model;
mod mutations;
mod oracle;
mod refusals;
mod rewraps;
mod rig;
mod rollback;
mod snapshots;
mod space;
mod stacks;
mod tampering;
mod threads;
mod towers;
mod turns;
