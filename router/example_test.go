package router_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// The simplest use: a client, a write, a read.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := router.Dial(ctx, []string{"127.0.0.1:7101", "127.0.0.1:7102"}, router.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Put(ctx, []byte("greeting"), []byte("hello")); err != nil {
		log.Fatal(err)
	}
	e, err := c.Get(ctx, []byte("greeting"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, version %d\n", e.Value, e.Version)
}

// A read-modify-write that is safe against others: the write says which version it has read.
func ExampleClient_CompareAndSwap() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := router.Dial(ctx, []string{"127.0.0.1:7101"}, router.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	key := []byte("config")
	for {
		e, err := c.Get(ctx, key)
		if err != nil {
			log.Fatal(err)
		}
		_, err = c.CompareAndSwap(ctx, key, router.VersionIs(key, e.Version), append(e.Value, '!'))
		if errors.Is(err, shard.ErrConditionFailed) {
			continue // somebody else was faster: read again
		}
		if err != nil {
			log.Fatal(err)
		}
		return
	}
}

// All keys with a prefix.
func ExampleClient_Scan() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := router.Dial(ctx, []string{"127.0.0.1:7101"}, router.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for e, err := range c.Scan(ctx, []byte("user/"), []byte("user0")) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s = %s\n", e.Key, e.Value)
	}
}
