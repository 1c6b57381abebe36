"""What the guest is told at its first boot, by a NoCloud disk: nuageinit(7), or cloud-init."""

from __future__ import annotations

from pathlib import Path

from .iso9660 import image

#: What the guest says on its console once a key of ours lets us in.
READY = "freebsd-splice is ready for ssh"

#: A script, which nuageinit of every release runs at the end of the first boot (its cloud-config
#: has grown key by key).  nuageinit parses even a script as YAML, so this has to be a plain
#: scalar: no colon before a space, no brackets in front.  The key comes last: whoever is let in
#: finds all the rest done.
_SCRIPT = """\
#!/bin/sh
mkdir -p /root/.ssh /etc/rc.conf.d
for script in firstboot_pkg_upgrade firstboot_freebsd_update
do
echo ${{script}}_enable=NO >/etc/rc.conf.d/$script
done
sed -i.old -e 's/^#*PermitRootLogin .*/PermitRootLogin prohibit-password/' /etc/ssh/sshd_config
service sshd restart || service ssh restart
umask 077
echo {public_key} >>/root/.ssh/authorized_keys
echo {ready} >/dev/console
"""


def user_data(public_key: str) -> str:
    """The script, for an OpenSSH public key of one line."""
    kind, key = public_key.split()[:2]
    return _SCRIPT.format(public_key=f"{kind} {key}", ready=READY)


def write(path: Path, public_key: str) -> None:
    """Write the disk's image."""
    files = {
        "meta-data": b"instance-id: freebsd-splice\nlocal-hostname: freebsd-splice\n",
        "user-data": user_data(public_key).encode(),
    }
    path.write_bytes(image("cidata", files))
