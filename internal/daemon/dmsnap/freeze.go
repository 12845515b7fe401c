package dmsnap

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"banger/internal/errdefs"
)

// Freeze ends the newest layer of a volume that is up: from now on file, which MakeLayer
// has made, takes what is written. Whoever uses the volume goes on with the same device
// after a moment, in which everything written before is brought down to the old layer,
// and commit is called. It is to record that the stack has grown: from when it returns
// nil the volume must be brought up with the new layer as its last. When it fails, or
// Freeze does otherwise, the volume is as before.
//
// A crash, or an error when it is to go on, may leave the volume suspended; Thaw mends
// that. After commit, what is written then still goes to the old layer: the stack holds
// all of it, but the layer is not what it was when it was frozen.
func (h *Host) Freeze(ctx context.Context, v Volume, file string, commit func() error) (err error) {
	c, err := openControl(h.dev)
	if err != nil {
		return err
	}
	defer c.close()
	below, n, err := h.top(c, v)
	if err != nil {
		return err
	}
	if n >= maxLayers {
		return errdefs.Exhausted("the disk has been frozen %d times, which is as often as it can", n).
			WithHint("make a new VM of it, and delete this one")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.remove(v.layer(n)))
		}
	}()
	dev, err := h.makeLayer(c, v, n, below, file, false)
	if err != nil {
		return err
	}
	if err := c.load(v.Name, false, linear(v.Size, dev)); err != nil {
		return err
	}
	err = c.suspend(v.Name, true)
	if err == nil {
		err = commit()
	}
	if err != nil {
		return errors.Join(err, c.unload(v.Name), c.resume(v.Name))
	}
	return c.resume(v.Name)
}

// top finds the layer that a volume which is up writes to, and a number for the next.
func (h *Host) top(c *control, v Volume) (below string, next int, err error) {
	ours, err := h.ours(c, v)
	if err != nil {
		return "", 0, err
	}
	if len(ours) < 3 || ours[0].name != v.Name {
		return "", 0, errdefs.Precondition("device %s is not there", v.Name)
	}
	lines, err := c.lines(v.Name, true)
	if err != nil {
		return "", 0, err
	}
	if len(lines) == 1 {
		below, _, _ = strings.Cut(lines[0], " ")
	}
	if below == "" {
		return "", 0, fmt.Errorf("device %s has the table %q", v.Name, lines)
	}
	return below, v.height(ours[1].name) + 1, nil
}
