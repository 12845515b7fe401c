package dmsnap

import (
	"context"
	"errors"

	"banger/internal/errdefs"
)

// Hold lets whoever uses a volume wait: what was begun ends, nothing new begins, until
// Thaw. One that is held, or not up, is left alone.
func (h *Host) Hold(v Volume) error {
	return h.with(v, func(c *control, d *device) error {
		if d.suspended {
			return nil
		}
		return c.suspend(v.Name, false)
	})
}

// Thaw lets a volume go on that Hold, or a crash in Freeze, has left suspended, as it
// was before. One that is not suspended, or not up, is left alone.
func (h *Host) Thaw(v Volume) error {
	return h.with(v, func(c *control, d *device) error {
		if !d.suspended {
			return nil
		}
		return errors.Join(c.unload(v.Name), c.resume(v.Name))
	})
}

// Release makes everything fail that waits for a suspended volume: nothing can end a
// process that waits. What the layers hold stays as it is.
func (h *Host) Release(v Volume) error {
	return h.with(v, func(c *control, d *device) error {
		if !d.suspended {
			return nil
		}
		return c.fail(v.Name, v.Size)
	})
}

// Sound says what is wrong with a volume that is up: a layer that the kernel has given
// up, because something could not be read or written. Its disk is lost then.
func (h *Host) Sound(v Volume) error {
	return h.with(v, func(c *control, _ *device) error {
		_, next, err := h.top(c, v)
		if errors.Is(err, errdefs.ErrFailedPrecondition) {
			return nil // it is about to go
		}
		if err != nil {
			return err
		}
		for n := range next {
			if err := h.sound(c, v.layer(n)); err != nil {
				return err
			}
		}
		return nil
	})
}

// with does something with a volume's topmost device, if it is up.
func (h *Host) with(v Volume, do func(*control, *device) error) error {
	c, err := openControl(h.dev)
	if err != nil {
		return err
	}
	defer c.close()
	d, err := c.find(v.Name)
	if err != nil || d == nil || d.uuid != v.uuid(v.Name) {
		return err
	}
	return do(c, d)
}

// Watch calls look now and after every event of device-mapper's, such as that it has
// given a layer up, until ctx ends.
func (h *Host) Watch(ctx context.Context, look func()) error {
	c, err := openControl(h.dev)
	if err != nil {
		return err
	}
	defer c.close()
	return c.await(ctx, func() (bool, error) {
		look()
		return false, nil
	})
}
