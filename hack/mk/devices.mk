# SPDX-License-Identifier: Apache-2.0
# The checks of devices in a guest, whose kernel has what this machine's may lack.

.PHONY: test-devices
test-devices: host-packages ## Run the checks of target devices in a guest of KERNEL, with loop devices and the device mapper (out/test-devices.log)
	@mkdir -p bin/test out
	@CGO_ENABLED=0 go test -c -o bin/test/blockdev.test ./internal/blockdev
	@go run ./test/guest/cmd/run -kernel $(KERNEL) -mem 1024 -module loop -module dm_mod -module ext4 -file bin/test/blockdev.test -- \
		sh -c 'mkdir -p /tmp && mount -t tmpfs tmpfs /tmp; /blockdev.test -test.v' >out/test-devices.log 2>&1 || { cat out/test-devices.log; exit 1; }
	@grep -E '^--- (PASS|SKIP)' out/test-devices.log
	@# Those that need mkfs.ext4 run on the machine itself.
	@for test in Held Swap Partitioned ReadOnly TooSmall ClaimedByAnother WrongDeviceBehindTheNode LeftByLivedump; do \
		grep -q "^--- PASS: Test$$test " out/test-devices.log || { echo "test-devices: Test$$test did not run" >&2; exit 1; }; done
