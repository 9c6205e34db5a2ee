"""Option haggling by libnbd: the list, INFO and GO, a name that is not there, several exports on one socket, and ABORT."""

import sys
import nbd
from check import connect, same

socket, *names = sys.argv[1:]


def haggling():
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(socket)
    return handle


listed = []
h = haggling()
same(h.get_protocol(), "newstyle-fixed", "the protocol")
same(h.opt_list(lambda name, description: listed.append(name)), len(names), "the number of exports")
same(sorted(listed), sorted(names), "the exports")

# A refused name leaves the haggling where it was.
h.set_export_name("there is no such volume")
for option in (h.opt_info, h.opt_go):
    try:
        option()
        raise AssertionError("an export that is not there was found")
    except nbd.Error as error:
        same(error.errno, "ENOENT", "the answer for an export that is not there")
for name in names:
    h.set_export_name(name)
    h.opt_info()
    same(h.get_block_size(nbd.SIZE_MINIMUM), 1, f"the least block size of {name}")
    same(h.get_block_size(nbd.SIZE_PREFERRED), 4096, f"the preferred block size of {name}")
    same(h.get_block_size(nbd.SIZE_MAXIMUM), 32 << 20, f"the greatest payload of {name}")
    same(h.get_size() > 0, True, f"the size of {name}")
h.opt_abort()

# Each name is its own volume, also at the same time.
handles = []
for name in names:
    handle = haggling()
    handle.set_export_name(name)
    handle.opt_go()
    handle.pwrite(name.encode().ljust(4096, b"."), 4096)
    handles.append(handle)
for name, handle in zip(names, handles):
    same(handle.pread(4096, 4096), name.encode().ljust(4096, b"."), f"the content of {name}")
    handle.shutdown()
