/srp/source/make/configure CC=cc > /dev/null
make -j2 > /dev/null
