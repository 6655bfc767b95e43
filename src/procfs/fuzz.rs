//! Files of processes as the kernel does not write them.

use super::{cgroup_path, link_inode, stat_start_ticks, status_is_init};
use crate::fuzzing::feed;

#[test]
fn fuzz_files_of_a_process() {
    let samples = [
        "7 (a) b) 9) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0",
        "Name:\ta\nUmask:\t0022\nNSpid:\t4711\t1\nNSsid:\t1\n",
        "12:pids:/docker/abc\n1:name=systemd:/x:y\n0::/kubepods/pod1/abc\n",
        "pid:[4026532448]",
    ]
    .map(|text| text.as_bytes().to_vec());
    feed("files of a process", &samples, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        stat_start_ticks(&text);
        status_is_init(&text);
        link_inode(&text);
        assert!(text.contains(cgroup_path(&text)), "it makes up a path");
    });
}
